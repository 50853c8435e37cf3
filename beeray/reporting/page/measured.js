function chosenRows() {
  const select = element('ranking');
  if (!select) return [];
  return data.rows.filter((row) => row.key === select.value);
}

/** Dots, one a model; names get a running number of spaces where two are alike, or plotly would merge them. */
function dots(rows, value, more) {
  return {
    type: 'scatter', mode: 'markers', x: rows.map(value), y: rows.map((row, place) => plain(row.name) + '\u200b'.repeat(place)),
    marker: { size: 9, color: rows.map((row) => colour(row.kind)) }, ...more,
  };
}

function heading(text) {
  return { text, x: 0, xanchor: 'left', font: { size: 14 } };
}

function height(rows) {
  return 96 + 30 * rows.length;
}

function metricPlots(rows) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row.metrics)))];
  return names.map((name) => {
    const here = rows.filter((row) => row.metrics[name]);
    const trace = dots(here, (row) => row.metrics[name][0], {
      error_x: {
        type: 'data', symmetric: false, thickness: 1.5, width: 6, color: colour('ink'),
        array: here.map((row) => row.metrics[name][2] - row.metrics[name][0]),
        arrayminus: here.map((row) => row.metrics[name][0] - row.metrics[name][1]),
      },
      customdata: here.map((row) => row.metrics[name].map((figure) => figure.toFixed(4))),
      hovertemplate: '%{y}: %{customdata[0]}<br>95 % %{customdata[1]} – %{customdata[2]}<extra></extra>',
    });
    const shape = {
      title: heading(plain(name)), height: height(here),
      xaxis: { rangemode: 'tozero', nticks: 6 }, yaxis: { type: 'category', autorange: 'reversed' },
    };
    return { label: `${name} of every model with 95 % intervals; the table below has the figures`, traces: [trace], shape };
  });
}

function exposurePlots(rows) {
  const k = rows.findLast((row) => row.shown.k !== undefined)?.shown.k;
  const here = rows.filter((row) => row.shown.k === k);
  if (k === undefined) return [];
  const plot = (figure, text, label, more = {}) => ({
    label: `${label} of every model; the table below has the figures`,
    traces: [dots(here, (row) => row.shown[figure], { hovertemplate: '%{y}: %{x:.3f}<extra></extra>' })],
    shape: {
      title: heading(text), height: height(here), xaxis: { range: [0, 1.03], nticks: 6 },
      yaxis: { type: 'category', autorange: 'reversed' }, ...more,
    },
  });
  const target = here.at(-1).shown.target_popularity;
  const line = { type: 'line', xref: 'x', yref: 'paper', x0: target, x1: target, y0: 0, y1: 1, line: { color: colour('ink'), width: 1.5, dash: 'dash' } };
  return [
    plot('coverage', `coverage@${k}`, 'Coverage'),
    plot('gini', `Gini@${k}`, 'Gini coefficient'),
    plot('popularity', `popularity@${k} (line: what users take)`, 'Popularity of the items shown', { shapes: [line] }),
  ];
}

function drawMeasured() {
  const select = element('ranking');
  if (!select) return;
  for (const table of document.querySelectorAll('.measured')) table.hidden = table.dataset.key !== select.value;
  const rows = chosenRows();
  drawPlots(element('metric-plots'), metricPlots(rows));
  drawPlots(element('exposure-plots'), exposurePlots(rows));
}
