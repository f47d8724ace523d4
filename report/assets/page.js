"use strict";
(() => {
  // Tables: a click on a heading sorts, the search field and the boxes beside it filter.
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value !== undefined ? Number(cell.dataset.value) : cell.textContent;
  };
  for (const section of document.querySelectorAll("section[data-table]")) {
    const table = section.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
    const search = section.querySelector("input[type=search]"), shown = section.querySelector(".shown");
    const boxes = [...section.querySelectorAll("input[type=checkbox]")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const off = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
      let visible = 0;
      rows.forEach((row, i) => {
        row.hidden = off.has(row.dataset.kind) || !words.every((word) => texts[i].includes(word));
        visible += row.hidden ? 0 : 1;
      });
      shown.textContent = visible + " of " + rows.length;
    };
    search.addEventListener("input", filter);
    boxes.forEach((box) => box.addEventListener("change", filter));
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const keyed = rows.map((row, i) => [value(row, column), i, row]);
        keyed.sort(([a, i], [b, j]) => {
          const order = typeof a === "number" && typeof b === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0;
          return (descending ? -order : order) || i - j;
        });
        body.append(...keyed.map((k) => k[2]));
      });
    });
    filter();
  }

  // Charts are drawn again when the colours or the width change.
  const data = JSON.parse(document.getElementById("charts").textContent);
  const details = JSON.parse(document.getElementById("details").textContent);
  const holders = document.querySelectorAll("[data-chart]");
  const panel = document.getElementById("detail");
  let plots = [], shownModule = -1;
  const number = (v) => (v == null ? "" : v !== 0 && (Math.abs(v) < 0.001 || Math.abs(v) >= 1e5) ? v.toExponential(1) : String(+v.toPrecision(6)));
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Values that are all alike get an axis that is worth reading.
  const span = (u, low, high) => {
    const least = Math.max(1e-2 * Math.max(Math.abs(low), Math.abs(high)), 1e-12);
    return high - low < least ? [low - least, high + least] : uPlot.rangeNum(low, high, 0.1, true);
  };
  const plot = (chart, holder) => {
    const text = colour("--dim"), line = colour("--line"), strokes = [colour("--accent"), colour("--odd"), colour("--bad")];
    const axis = (label) => ({ stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, label, labelSize: 22, labelFont: "12px sans-serif", font: "12px sans-serif" });
    const y = Object.assign(axis(chart.y), { size: 62, values: (u, ticks) => ticks.map(number) });
    plots.push(new uPlot({
      width: Math.max(300, holder.clientWidth), height: 240,
      scales: { x: { time: false, range: chart.bars ? (u, low, high) => { const half = (chart.data[0][1] - chart.data[0][0]) / 2 || 0.5; return [low - half, high + half]; } : undefined }, y: { distr: chart.log ? 3 : 1, range: chart.bars ? (u, low, high) => [0, high * 1.05 || 1] : chart.log ? undefined : span } },
      axes: [Object.assign(axis(chart.x), { size: 40, values: (u, ticks) => ticks.map(number) }, chart.whole ? { incrs: [1, 2, 5].flatMap((n) => [n, n * 10, n * 100, n * 1000]).sort((a, b) => a - b) } : {}), y],
      series: [{ label: chart.x, value: (u, v) => number(v) }].concat(chart.series.map((label, i) => ({
        label, stroke: strokes[i], width: 2, fill: chart.bars ? strokes[i] + "66" : undefined, value: (u, v) => number(v),
        points: { show: !chart.bars && chart.data[0].length < 50, size: 5 }, paths: chart.bars ? uPlot.paths.bars({ size: [0.9] }) : undefined,
      }))),
    }, chart.data, holder));
  };
  const draw = () => {
    plots.forEach((p) => p.destroy());
    plots = [];
    for (const holder of holders) plot(data[holder.dataset.chart], holder);
    if (shownModule < 0) return;
    const d = details[shownModule];
    const parts = [["singular", d.s && d.s.length > 0 && { x: "number", y: "σ", series: ["σ"], bars: true, whole: true, data: [d.s.map((s, i) => i + 1), d.s] }]];
    const sum = d.e ? d.e.reduce((a, n) => a + n, 0) : 0;
    parts.push(["errors", sum > 0 && { x: d.u === "step" ? "|S−(W+ΔW)| / step" : "|S−(W+ΔW)| / rounding", y: "% of elements", series: ["% of elements"], bars: true, data: [d.e.map((n, i) => (i + 0.5) * d.w), d.e.map((n) => (100 * n) / sum)] }]);
    for (const [id, chart] of parts) {
      const holder = document.getElementById(id);
      holder.textContent = chart ? "" : "Not measured.";
      if (chart) plot(chart, holder);
    }
  };
  // A click on a module shows its own figures.
  for (const row of document.querySelectorAll("#modules tr[data-module]")) {
    row.querySelector("button.show").addEventListener("click", () => {
      const n = Number(row.dataset.module);
      shownModule = n === shownModule ? -1 : n;
      document.querySelectorAll("#modules tr[aria-selected]").forEach((r) => r.removeAttribute("aria-selected"));
      panel.hidden = shownModule < 0;
      if (shownModule >= 0) {
        row.setAttribute("aria-selected", "true");
        panel.querySelector("h3").textContent = row.cells[0].textContent;
        panel.scrollIntoView({ block: "nearest" });
      }
      draw();
    });
  }
  if (holders.length > 0) {
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    let later;
    addEventListener("resize", () => { clearTimeout(later); later = setTimeout(draw, 150); });
  }
})();
