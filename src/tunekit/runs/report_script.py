"""The report's script: chart read-outs, filters, unfolding before print. The page reads well without."""

SCRIPT = r"""
"use strict";
for (const chart of document.querySelectorAll("figure.chart")) {
  const island = chart.querySelector("script");
  if (!island) continue;
  const data = JSON.parse(island.textContent);
  const plot = chart.querySelector(".plot");
  const cursor = plot.querySelector(".cursor");
  const readout = plot.querySelector(".readout");
  const steps = [...new Set(data.series.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  const nearest = (values, x, of) => {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (of(values[middle]) < x) low = middle; else high = middle;
    }
    return Math.abs(of(values[low]) - x) <= Math.abs(of(values[high]) - x) ? low : high;
  };
  let at = -1;
  const hide = () => { cursor.hidden = readout.hidden = true; };
  const show = (index) => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const step = steps[at];
    const share = (step - data.x[0]) / (data.x[1] - data.x[0]);
    readout.replaceChildren();
    const line = (text) => readout.appendChild(document.createElement("div")).textContent = text;
    line("step " + step.toLocaleString("en"));
    for (const series of data.series) {
      const point = series.points[nearest(series.points, step, (p) => p[0])];
      const away = point[0] === step ? "" : " (step " + point[0].toLocaleString("en") + ")";
      line(series.name + "  " + point[2] + away);
    }
    cursor.hidden = readout.hidden = false;
    cursor.style.left = 100 * share + "%";
    const room = plot.clientWidth, wide = readout.offsetWidth, x = share * room;
    readout.style.left = Math.max(0, x + wide + 14 < room ? x + 12 : x - wide - 12) + "px";
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = data.x[0] + ((event.clientX - box.left) / box.width) * (data.x[1] - data.x[0]);
    show(nearest(steps, x, (value) => value));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(Number.isFinite(move) ? at + move : move < 0 ? 0 : steps.length - 1);
  });
}
const words = document.querySelector("#filter-words");
const group = document.querySelector("#filter-group");
if (words && group) {
  const samples = [...document.querySelectorAll(".sample")];
  const texts = samples.map((sample) => sample.textContent.toLowerCase());
  const apply = () => {
    const wanted = words.value.trim().toLowerCase();
    let shown = 0;
    samples.forEach((sample, index) => {
      const fits = texts[index].includes(wanted) && (!group.value || sample.dataset.group === group.value);
      sample.hidden = !fits;
      shown += fits;
    });
    document.querySelector("#filter-count").textContent = shown + " of " + samples.length + " shown";
  };
  words.addEventListener("input", apply);
  group.addEventListener("change", apply);
}
const rows = document.querySelector("#answers-rows");
if (rows) {
  const [search, kind, order, told] = ["words", "kind", "order", "count"].map((part) =>
    document.querySelector("#answers-" + part));
  const all = [...rows.children].map((row) => ({ row, text: row.textContent.toLowerCase() }));
  const apply = () => {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const { row, text } of all) {
      const fits = text.includes(wanted) && (!kind.value || row.dataset.ended === kind.value);
      row.hidden = !fits;
      shown += fits;
    }
    told.textContent = shown + " of " + all.length + " shown";
  };
  const sort = () => {
    const key = order.value.replace("-", ""), sign = order.value.startsWith("-") ? -1 : 1;
    const known = all.filter(({ row }) => row.dataset[key] !== "");
    const unknown = all.filter(({ row }) => row.dataset[key] === "");
    known.sort((a, b) => {
      const one = Number(a.row.dataset[key]), other = Number(b.row.dataset[key]);
      return one === other ? 0 : sign * (one < other ? -1 : 1);
    });
    rows.append(...[...known, ...unknown].map(({ row }) => row));
  };
  search.addEventListener("input", apply);
  kind.addEventListener("change", apply);
  order.addEventListener("change", sort);
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
"""
