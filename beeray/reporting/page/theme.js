const data = JSON.parse(document.getElementById('data').textContent);
const element = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();

/** An element with text in it: what comes from data is never read as HTML. */
function made(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

/** Text as plotly shows it: it reads a few tags, so data must not bring any. */
function plain(text) {
  return String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
}

/** The beginning of a text, cut at its first sentence or at a length. */
function title(text, length = 90) {
  const end = text.indexOf('. ');
  const first = end > 0 ? text.slice(0, end) : text;
  return first.length > length ? first.slice(0, length - 1) + '…' : first;
}

/** A layout in the page's colours. */
function layout(more) {
  const axis = { gridcolor: colour('line'), zerolinecolor: colour('line'), linecolor: colour('line'), automargin: true, fixedrange: true };
  const { xaxis, yaxis, ...others } = more;
  return {
    font: { family: 'system-ui, sans-serif', size: 13, color: colour('ink') },
    paper_bgcolor: 'transparent', plot_bgcolor: 'transparent', showlegend: false, dragmode: false,
    hoverlabel: { bgcolor: colour('card'), bordercolor: colour('line'), font: { color: colour('ink') }, align: 'left' },
    modebar: { bgcolor: 'transparent', color: colour('soft'), activecolor: colour('ink') },
    margin: { l: 8, r: 16, t: 36, b: 8 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...others,
  };
}

const settings = { responsive: true, displaylogo: false, displayModeBar: false };

/** Draw into a child of a box, made when first asked for. */
function draw(box, name, label, traces, shape) {
  let plot = box.querySelector(`[data-plot="${CSS.escape(name)}"]`);
  if (!plot) {
    plot = made('div');
    plot.dataset.plot = name;
    plot.setAttribute('role', 'img');
    plot.setAttribute('aria-label', label);
    box.append(plot);
  }
  Plotly.react(plot, traces, layout(shape), settings);
}
