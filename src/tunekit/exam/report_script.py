"""The report's script: rows a page at a time, their filter, and links that set it. Without it the first page stands."""

SCRIPT = r"""
"use strict";
const island = document.querySelector("#rows-data");
if (island) {
  const data = JSON.parse(island.textContent);
  const body = document.querySelector("#rows-body");
  const at = (name) => document.querySelector("#filter-" + name);
  const fields = { words: at("words"), task: at("task"), show: at("show") };
  const make = (element, look, text) => {
    const made = document.createElement(element);
    if (look) made.className = look;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const prose = (text) => {
    if (text === null) return make("span", "muted", "–");
    return text.trim() ? make("div", "text", text) : make("span", "muted", "(empty)");
  };
  const scores = (row) => {
    const list = make("div", "scores");
    row[6].forEach((score, index) => {
      if (!score) return;
      const line = list.appendChild(make("div"));
      line.append(make("span", "muted", data.tasks[row[0]].metrics[index]), " ");
      line.append(make("b", score[2], data.compared ? score[0] + " → " + score[1] : score[1]));
      if (score[3] === "won" || score[3] === "lost")
        line.append(" ", make("span", "pill " + (score[3] === "won" ? "good" : "bad"), score[3]));
    });
    if (row[7]) list.appendChild(make("span", "pill leak", "in the training data"));
    return list;
  };
  const line = (row) => {
    const made = make("tr");
    const add = (label, ...parts) => {
      const cell = made.appendChild(make("td"));
      cell.dataset.label = label;
      cell.append(...parts);
    };
    add("Prompt", prose(row[2]), make("small", "mono", row[1] + " · " + data.tasks[row[0]].name));
    add("Reference", prose(row[3]));
    if (data.compared) add("Base", prose(row[4]));
    add("Tuned", prose(row[5]));
    add("Scores", scores(row));
    return made;
  };
  const texts = new Array(data.rows.length);
  const text = (index) => {
    if (texts[index] === undefined) {
      const row = data.rows[index];
      texts[index] = [row[1], row[2], row[3], row[4] || "", row[5] || ""].join("\n").toLowerCase();
    }
    return texts[index];
  };
  const fits = (row, task, metric, show) => {
    if (task !== "" && row[0] !== +task) return false;
    if (show === "leak") return Boolean(row[7]);
    const score = metric === undefined ? row[6].find((one) => one) : row[6][+metric];
    if (metric !== undefined && !score) return false;
    if (!show) return true;
    if (!score) return false;
    if (show === "changed") return score[3] === "won" || score[3] === "lost";
    return score[2] === show || score[3] === show;
  };
  let chosen = [], page = 0;
  const draw = () => {
    const pages = Math.max(1, Math.ceil(chosen.length / data.page));
    page = Math.max(0, Math.min(pages - 1, page));
    const part = chosen.slice(page * data.page, (page + 1) * data.page);
    body.replaceChildren(...part.map((index) => line(data.rows[index])));
    at("count").textContent = chosen.length.toLocaleString("en") + " of " + data.rows.length.toLocaleString("en") +
      " rows, page " + (page + 1) + " of " + pages;
    at("back").disabled = page === 0;
    at("on").disabled = page === pages - 1;
  };
  const apply = () => {
    const wanted = fields.words.value.trim().toLowerCase();
    const [task, metric] = fields.task.value.split("/");
    chosen = [];
    data.rows.forEach((row, index) => {
      if (fits(row, task, metric, fields.show.value) && (!wanted || text(index).includes(wanted))) chosen.push(index);
    });
    page = 0;
    draw();
  };
  const turn = (by) => { page += by; draw(); document.querySelector("#samples").scrollIntoView(); };
  const follow = () => {
    const asked = location.hash.slice(1);
    if (!asked.includes("=")) return;
    const given = new URLSearchParams(asked);
    for (const [name, field] of Object.entries(fields)) field.value = given.get(name) || "";
    for (const name of ["task", "show"]) if (fields[name].selectedIndex < 0) fields[name].value = "";
    apply();
    page = (parseInt(given.get("page"), 10) || 1) - 1;
    draw();
    document.querySelector("#samples").scrollIntoView();
  };
  fields.words.addEventListener("input", apply);
  fields.task.addEventListener("change", apply);
  fields.show.addEventListener("change", apply);
  at("back").addEventListener("click", () => turn(-1));
  at("on").addEventListener("click", () => turn(1));
  addEventListener("hashchange", follow);
  apply();
  follow();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
"""
