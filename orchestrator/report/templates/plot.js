"use strict";
// Draws one chart as orchestrator/report/pages/chart.py describes it, with uPlot: window.drawChart(chart, place).
(() => {
  const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const font = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
  const scales = [[1e9, "B"], [1e6, "M"], [1e3, "k"]];

  const exact = value => {
    if (value === null || value === undefined) return "";
    if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e15)) return value.toExponential(3);
    const digits = Number.isInteger(value) || Math.abs(value) >= 1e4 ? 0 : Math.abs(value) >= 100 ? 1 : 4;
    return value.toLocaleString("en-US", {minimumFractionDigits: digits, maximumFractionDigits: digits});
  };
  // Decimals without which two ticks would read alike or a tick would lie: 1 for 0.5, 2 for 0.25.
  const needed = step => {
    const whole = digits => Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) < 1e-6 * Math.abs(step) * 10 ** digits;
    return [0, 1, 2, 3, 4, 5].find(whole) ?? 6;
  };
  const ticks = (plot, splits, axis, space, step) => splits.map(value => {
    if (value === null) return "";
    const top = Math.max(...splits.map(Math.abs));
    if (value === 0) return "0";
    if (top < 1e-3) return value.toExponential(needed(value / 10 ** Math.floor(Math.log10(Math.abs(value)) + 1e-9)));
    const [by, unit] = top >= 1e4 ? scales.find(([by]) => top >= by) : [1, ""];
    const digits = needed(step / by);
    return (value / by).toLocaleString("en-US", {minimumFractionDigits: digits, maximumFractionDigits: digits}) + unit;
  });
  const gutter = (plot, values) => 18 + 7 * Math.max(2, ...(values || []).map(text => text.length));

  const line = (series, index) => {
    const hue = color(series.color || (series.kind === "points" ? "--c1" : "--c0"));
    const shown = {label: series.label, stroke: hue, width: 2, value: (plot, value) => exact(value), points: {show: false}, spanGaps: true};
    if (series.kind === "faint") return {...shown, stroke: color("--faint"), width: 1};
    if (series.kind === "points") return {...shown, width: 1.25, points: {show: true, size: 6, width: 1.5, stroke: hue, fill: color("--card")}};
    return shown;
  };

  window.drawChart = (chart, place) => {
    const axis = {stroke: color("--soft"), font, grid: {stroke: color("--grid"), width: 1}, ticks: {show: false}, values: ticks};
    const width = place.clientWidth;
    const wide = place.closest(".card").classList.contains("wide");
    const options = {
      width, height: width < 500 ? 220 : wide ? 340 : 220,
      padding: [8, 16, 0, 0],
      scales: {x: {time: false}},
      series: [{label: chart.x, value: (plot, value) => exact(value)}, ...chart.series.map(line)],
      axes: [
        {...axis, size: 24, gap: 4, label: chart.x, labelFont: font, labelSize: 18, labelGap: 0, space: 70},
        {...axis, size: gutter, gap: 6, space: 36},
      ],
      legend: {live: true, markers: {width: 0, fill: (plot, index) => plot.series[index].stroke()}},
      cursor: {drag: {x: true, y: false, dist: 8}, points: {size: 7}, sync: {key: chart.x}},
    };
    return new uPlot(options, [chart.xs, ...chart.series.map(series => series.values)], place);
  };
})();
