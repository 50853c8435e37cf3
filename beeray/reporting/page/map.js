const groups = ['#4e79a7', '#f28e2b', '#59a14f', '#e15759', '#76b7b2', '#b6992d', '#af7aa1', '#ff9da7', '#9c755f', '#86bcb6', '#d37295', '#8a8f98'];
const colourings = {
  group: 'groups of alike items',
  popularity: 'number of users',
  seen: 'new or seen',
  domain: 'domain',
};
const touched = matchMedia('(pointer: coarse)').matches; // a drag there scrolls the page
const view = { encoder: 'trained', colouring: 'group' };

function markerColours() {
  if (view.colouring === 'popularity') {
    return {
      color: items.users.map((users) => Math.log10(1 + users)), colorscale: 'Viridis', showscale: true,
      colorbar: {
        thickness: 10, len: 0.6, title: { text: 'users', side: 'right' }, outlinewidth: 0,
        tickvals: [0, 1, 2, 3, 4, 5].map((power) => Math.log10(1 + 10 ** power)), ticktext: ['1', '10', '100', '1k', '10k', '100k'],
      },
    };
  }
  if (view.colouring === 'seen') return { color: items.id.map((_, place) => (isNew(place) ? colour('new') : colour('baseline'))) };
  const classes = view.colouring === 'domain' ? items.domain.map((name) => domains.indexOf(name)) : items.group;
  return { color: classes.map((one) => groups[one % groups.length]) };
}

function emphasis(places, marker) {
  const { x, y } = encoders[view.encoder];
  return {
    type: 'scatter', mode: 'markers', x: places.map((place) => x[place]), y: places.map((place) => y[place]),
    customdata: places, text: places.map((place) => hovers[place]), hovertemplate: '%{text}<extra></extra>', marker,
  };
}

/** A text in lines, as plotly shows them. */
function hover(place) {
  const words = title(items.text[place], 160).split(' ');
  const lines = [''];
  for (const word of words) {
    if ((lines.at(-1) + word).length > 44) lines.push('');
    lines[lines.length - 1] += word + ' ';
  }
  return lines.map((line) => plain(line.trim())).join('<br>') + `<br>${count(items.users[place], 'user')}${isNew(place) ? ', new' : ''}`;
}

const domains = items ? [...new Set(items.domain)].sort() : [];
const hovers = items ? items.id.map((_, place) => hover(place)) : [];

function drawMap() {
  const plot = element('map-plot');
  if (!plot || !encoders[view.encoder]) return;
  const { x, y, places } = encoders[view.encoder];
  const ring = (size, width) => ({ size, color: 'rgba(0,0,0,0)', line: { color: colour('ink'), width } });
  const hidden = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const more = 0.06 * (high - low) || 1;
    return { visible: false, range: [low - more, high + more], fixedrange: false };
  };
  const traces = [
    {
      type: 'scatter', mode: 'markers', x, y, customdata: items.id.map((_, place) => place), text: hovers,
      hovertemplate: '%{text}<extra></extra>', marker: { size: items.id.length > 600 ? 6 : 9, opacity: 0.8, ...markerColours() },
    },
    emphasis(places[state.item], ring(11, 1.5)),
    emphasis([state.item], { size: 16, color: colour('accent'), symbol: 'star', line: { color: colour('ink'), width: 1.5 } }),
  ];
  Plotly.react(plot, traces, layout({
    margin: { l: 0, r: 0, t: 8, b: 8 }, xaxis: hidden(x), yaxis: hidden(y), dragmode: touched ? false : 'pan', hovermode: 'closest', uirevision: view.encoder,
  }), { ...settings, scrollZoom: false, displayModeBar: true, modeBarButtons: [['zoomIn2d', 'zoomOut2d', 'resetScale2d']] });
}

function markSelected() {
  drawMap();
  const line = element('map-selected');
  if (!line) return;
  const back = made('a', 'See its neighbours');
  back.href = '#explorer';
  line.replaceChildren('★ ', written('bdi', title(items.text[state.item])), '; ○ its ten nearest. ', back);
}

function startMap() {
  const names = Object.keys(encoders);
  if (!names.length) { element('map').hidden = true; return; }
  view.encoder = names.at(-1);
  for (const name of names) {
    const label = made('label');
    const radio = made('input');
    Object.assign(radio, { type: 'radio', name: 'map-encoder', value: name, checked: name === view.encoder });
    radio.addEventListener('change', () => { view.encoder = name; drawMap(); });
    label.append(radio, name);
    element('map-encoder').append(label);
  }
  const select = element('colour');
  for (const [name, text] of Object.entries(colourings)) {
    if (name === 'domain' && domains.length < 2) continue;
    const option = made('option', text);
    option.value = name;
    select.append(option);
  }
  view.colouring = domains.length > 1 ? 'domain' : 'group';
  select.value = view.colouring;
  select.addEventListener('change', () => { view.colouring = select.value; drawMap(); });
  drawMap();
  resized.observe(element('map-plot'));
  element('map-plot').on('plotly_click', (event) => selectItem(event.points.at(-1).customdata));
}
