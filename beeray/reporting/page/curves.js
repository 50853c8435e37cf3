function curve(text, series, more = {}) {
  const traces = series.map((one) => ({
    type: 'scatter', mode: one.x.length > 1 ? 'lines' : 'markers', x: one.x, y: one.y, name: one.name,
    line: { width: one.faint ? 1 : 2.5, color: one.colour }, marker: { color: one.colour }, opacity: one.faint ? 0.45 : 1,
    hovertemplate: `${plain(one.name)} %{y:.4~g}<extra>step %{x:,.0f}</extra>`,
  }));
  const last = Math.max(1, ...series.flatMap((one) => one.x));
  const shape = {
    title: heading(text), height: 260,
    xaxis: { title: { text: 'step', font: { size: 12 } }, nticks: 6, range: [0, 1.03 * last] }, yaxis: { nticks: 5, ...more },
    showlegend: series.length > 1, legend: { orientation: 'h', x: 1, xanchor: 'right', y: 1.02, yanchor: 'bottom', font: { size: 12 } },
  };
  return { label: `${text} over the steps`, traces, shape };
}

function drawCurves() {
  const box = element('curve-plots');
  if (!box) return;
  const { step, loss, smooth, lr, tokens_per_s: tokens } = data.curves;
  const main = colour('trained');
  const plots = [curve('Loss', [
    { name: 'each step', x: step, y: loss, faint: true, colour: colour('soft') },
    { name: 'smoothed', x: step, y: smooth, colour: main },
  ])];
  const colours = ['trained', 'before', 'other', 'new', 'soft'].map(colour);
  const scores = Object.entries(data.validation.metrics).map(([name, y], place) => (
    { name, x: data.validation.step, y, colour: colours[place % colours.length] }));
  if (scores.length) plots.push(curve('Validation', scores, { rangemode: 'tozero' }));
  plots.push(curve('Learning rate', [{ name: 'learning rate', x: step, y: lr, colour: main }], { rangemode: 'tozero', exponentformat: 'e' }));
  plots.push(curve('Tokens a second', [{ name: 'tokens/s', x: step, y: tokens, colour: main }], { rangemode: 'tozero', tickformat: '.3~s' }));
  drawPlots(box, plots);
}
