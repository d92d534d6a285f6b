"use strict";
// Draws the charts of the page from its JSON with uPlot, and draws them anew when the colours or the width change.
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const places = charts.map(chart => document.getElementById("plot-" + chart.key));
  let plots = [];
  const drawAll = () => {
    plots.forEach(plot => plot.destroy());
    plots = charts.map((chart, index) => drawChart(chart, places[index]));
  };
  let last = 0, waiting = 0;
  const resized = () => {
    if (window.innerWidth === last) return;
    last = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 80);
  };
  last = window.innerWidth;
  drawAll();
  window.addEventListener("resize", resized);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  document.documentElement.dataset.drawn = String(plots.length);
})();
