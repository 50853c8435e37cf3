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

/** The same with a text that people wrote, in whichever direction it is read. */
function written(tag, text, className) {
  const node = made(tag, text, className);
  node.dir = 'auto';
  return node;
}

/** Text as plotly shows it: it reads a few tags, so data must not bring any. */
function plain(text) {
  return String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
}

/** The beginning of a text, cut at its first sentence (initials end none) or at a length. */
function title(text, length = 120) {
  const end = text.search(/[^.\s]{2}\.\s/);
  const first = end >= 0 ? text.slice(0, end + 2) : text;
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

const settings = { displaylogo: false, displayModeBar: false };

const resized = new ResizeObserver((entries) => entries.forEach((entry) => entry.target.data && Plotly.Plots.resize(entry.target)));

/** Draw plots side by side; all places are made before the first is drawn, since they share the width. */
function drawPlots(box, plots) {
  for (const plot of box.children) {
    resized.unobserve(plot);
    Plotly.purge(plot);
  }
  const places = plots.map(({ label }) => {
    const place = made('div');
    place.setAttribute('role', 'img');
    place.setAttribute('aria-label', label);
    return place;
  });
  box.replaceChildren(...places);
  plots.forEach(({ traces, shape }, at) => {
    Plotly.newPlot(places[at], traces, layout(shape), settings);
    resized.observe(places[at]);
  });
}
