"use strict";
// Draws each plot from the table beneath it, so that both say the same. Without uPlot the tables are opened instead.
(() => {
  const COLOURS = ["--accent", "--second", "--good", "--bad"];

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const tableOf = (plot) => document.getElementById(plot.dataset.table);

  const columnsOf = (table) => {
    const heads = [...table.tHead.rows[0].cells].map((cell, at) => ({ title: cell.textContent, at, skip: "skip" in cell.dataset }));
    const rows = [...table.tBodies[0].rows];
    return heads.filter((head) => !head.skip).map((head) => ({
      title: head.title,
      values: rows.map((row) => {
        const text = row.cells[head.at].dataset.v;
        return text === "" || text === undefined ? null : Number(text);
      }),
    }));
  };

  const labelOf = (plot, value) => {
    if (value === null || value === undefined) return "–";
    return plot.dataset.percent ? `${(100 * value).toFixed(2)} %` : Number(value.toPrecision(5)).toLocaleString("en");
  };

  const axis = (values) => ({
    stroke: style("--soft"),
    font: "12px system-ui, sans-serif",
    grid: { stroke: style("--line"), width: 1 },
    ticks: { stroke: style("--line"), width: 1, size: 4 },
    ...(values ? { values } : {}),
  });

  const optionsOf = (plot, columns) => {
    const kind = plot.dataset.chart;
    const ticks = plot.dataset.percent ? (_, values) => values.map((value) => (value === null ? "" : `${Math.round(100 * value)} %`)) : null;
    const range = (_, low, high) => {
      const least = plot.dataset.low === undefined ? low : Number(plot.dataset.low);
      const most = plot.dataset.high === undefined ? high : Number(plot.dataset.high);
      if (least === null || most === null || !Number.isFinite(least + most)) return [0, 1];
      const room = plot.dataset.high === undefined ? (most - least || Math.abs(most) || 1) * 0.06 : 0;
      return [plot.dataset.low === undefined && kind !== "bars" ? least - room : Math.min(least, 0), most + room];
    };
    const isLog = plot.dataset.log === "x";
    return {
      width: Math.max(plot.clientWidth, 200),
      height: 240,
      scales: { x: { time: false, ...(isLog ? { distr: 3, log: 2 } : {}), ...(kind === "bars" ? { range: (_, low, high) => [low, high + 0.25] } : {}) }, y: { range } },
      axes: [
        { ...axis(isLog ? (_, values) => values.map((value) => (value === null ? "" : String(value))) : null), ...(kind === "points" ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10000, 100000] } : {}), label: plot.dataset.x, labelSize: 18, labelFont: "12px system-ui, sans-serif" },
        { ...axis(ticks), size: 56 },
      ],
      series: [
        { label: plot.dataset.x },
        ...columns.slice(1).map((column, at) => ({
          label: column.title,
          stroke: style(COLOURS[at % COLOURS.length]),
          width: 2,
          dash: at === 0 ? undefined : [6, 4].map((length) => length / at),
          value: (_, value) => labelOf(plot, value),
          points: { show: kind === "points" || column.values.length < 30, size: 7, fill: kind === "points" ? style("--accent") : style("--paper") },
          ...(kind === "points" ? { paths: () => null } : {}),
          ...(kind === "bars" ? { fill: style("--accent"), paths: uPlot.paths.bars({ size: [0.9, 100], align: 1 }), points: { show: false } } : {}),
        })),
      ],
      cursor: { y: false },
    };
  };

  const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    if (target.uplot && Math.abs(target.uplot.width - target.clientWidth) > 1) {
      target.uplot.setSize({ width: Math.max(target.clientWidth, 200), height: 240 });
    }
  }));

  const draw = (plot) => {
    const table = tableOf(plot);
    if (!table || !table.tBodies[0].rows.length) return;
    const columns = columnsOf(table);
    plot.uplot?.destroy();
    plot.uplot = new uPlot(optionsOf(plot, columns), columns.map((column) => column.values), plot);
    const canvas = plot.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${plot.dataset.label}. Its numbers are in the table beneath.`);
    resized.observe(plot);
  };

  const drawAll = () => document.querySelectorAll(".plot").forEach(draw);

  const openTables = () => document.querySelectorAll(".plot").forEach((plot) => {
    plot.hidden = true;
    const details = tableOf(plot)?.closest("details");
    if (details) details.open = true;
  });

  document.addEventListener("DOMContentLoaded", () => {
    if (typeof uPlot === "undefined") { openTables(); return; }
    drawAll();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    // What the server has drawn anew has its tables, and no plots yet.
    document.addEventListener("htmx:afterSettle", ({ target }) => target.querySelectorAll?.(".plot").forEach(draw));
  });
  window.redrawCharts = () => typeof uPlot !== "undefined" && drawAll();
})();
