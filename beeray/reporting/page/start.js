function drawAll() {
  drawMeasured();
  drawCurves();
  if (items) drawMap();
}

if (element('ranking')) element('ranking').addEventListener('change', drawMeasured);
drawMeasured();
drawCurves();
if (items) {
  state.item = firstItem();
  startExplorer();
  startMap();
  selectItem(state.item);
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
