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
  const holders = document.querySelectorAll("[data-chart]");
  let plots = [];
  const number = (v) => (v == null ? "" : v !== 0 && (Math.abs(v) < 0.001 || Math.abs(v) >= 1e5) ? v.toExponential(1) : String(+v.toPrecision(6)));
  const draw = () => {
    plots.forEach((plot) => plot.destroy());
    plots = [];
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const text = colour("--dim"), line = colour("--line"), strokes = [colour("--accent"), colour("--odd"), colour("--bad")];
    for (const holder of holders) {
      const chart = data[holder.dataset.chart];
      const axis = (label) => ({ stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, label, labelSize: 22, labelFont: "12px sans-serif", font: "12px sans-serif" });
      const y = Object.assign(axis(chart.y), { size: 62, values: (u, ticks) => ticks.map(number) });
      plots.push(new uPlot({
        width: Math.max(300, holder.clientWidth), height: 240,
        scales: { x: { time: false }, y: { distr: chart.log ? 3 : 1, range: chart.bars ? (u, low, high) => [0, high * 1.05 || 1] : undefined } },
        axes: [Object.assign(axis(chart.x), { size: 40, values: (u, ticks) => ticks.map(number) }, chart.whole ? { incrs: [1, 2, 5].flatMap((n) => [n, n * 10, n * 100, n * 1000]).sort((a, b) => a - b) } : {}), y],
        series: [{ label: chart.x, value: (u, v) => number(v) }].concat(chart.series.map((label, i) => ({
          label, stroke: strokes[i], width: 2, fill: chart.bars ? strokes[i] + "66" : undefined, value: (u, v) => number(v),
          points: { show: !chart.bars && chart.data[0].length < 50, size: 5 }, paths: chart.bars ? uPlot.paths.bars({ size: [0.9] }) : undefined,
        }))),
      }, chart.data, holder));
    }
  };
  if (holders.length > 0) {
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    let later;
    addEventListener("resize", () => { clearTimeout(later); later = setTimeout(draw, 150); });
  }
})();
