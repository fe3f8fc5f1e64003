// Views and filters.

const VIEWS = ["scores", "heatmaps", "examples", "provenance"];
const byId = (id) => document.getElementById(id);
let view = "scores";

function open(name, focus = false) {
  view = name;
  for (const other of VIEWS) {
    const tab = byId(`tab-${other}`);
    byId(other).hidden = other !== name;
    tab.setAttribute("aria-selected", String(other === name));
    tab.tabIndex = other === name ? 0 : -1;
    if (focus && other === name) tab.focus();
  }
  // Not the section's own id, which the browser would scroll to.
  if (location.hash !== `#view=${name}`) history.replaceState(null, "", `#view=${name}`);
  refresh();
}

/** Show what the filters leave, in the view that is open. */
function refresh() {
  for (const [id, own, all] of [["methods", chosen.names, names], ["tasks", chosen.tasks, tasks], ["lengths", chosen.lengths, lengths]]) {
    const title = byId(`choice-${id}`).querySelector("summary");
    title.textContent = `${id[0].toUpperCase()}${id.slice(1)}: ${own.size === all.length ? "all" : `${own.size} of ${all.length}`}`;
  }
  if (view === "heatmaps") drawHeatmaps();
  if (view === "examples") drawGrid();
  if (view === "provenance") drawProvenance();
  applyFilters(document);
  const depth = byId("depth");
  depth.hidden = chosen.depth === null;
  depth.replaceChildren(`depth ${chosen.depth === null ? "" : +chosen.depth.toPrecision(4)} % only ×`);
  byId("differ").disabled = !chosen.beside;
}

/** Hide what the filters leave out, in tables and heatmaps that are drawn. */
function applyFilters(root) {
  for (const element of root.querySelectorAll("article[data-task]")) element.hidden = !chosen.tasks.has(element.dataset.task);
  for (const element of root.querySelectorAll("tr[data-name], figure[data-name]")) element.hidden = !chosen.names.has(element.dataset.name);
  for (const element of root.querySelectorAll("[data-length]")) element.hidden = !chosen.lengths.has(Number(element.dataset.length));
}

/** Open the examples behind one cell, or behind one depth of it. */
function openCell(cell, depth = null) {
  Object.assign(chosen, { names: new Set([cell.name]), tasks: new Set([cell.task]), lengths: new Set([cell.length]), depth });
  for (const redraw of redrawChoices) redraw();
  open("examples");
  byId("examples").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

const redrawChoices = [];

/** Fill one filter with a box for each value. */
function choice(id, values, key, label) {
  const holder = byId(`choice-${id}`).querySelector(".options");
  const boxes = values.map((value) => make("input", { type: "checkbox", onchange: (event) => {
    if (event.target.checked) chosen[key].add(value);
    else chosen[key].delete(value);
    refresh();
  } }));
  const redraw = () => boxes.forEach((box, place) => { box.checked = chosen[key].has(values[place]); });
  const all = (which) => () => {
    chosen[key] = new Set(which ? values : []);
    redraw();
    refresh();
  };
  holder.append(
    make("p", {}, make("button", { type: "button", onclick: all(true) }, "all"), " ", make("button", { type: "button", onclick: all(false) }, "none")),
    ...values.map((value, place) => make("label", {}, boxes[place], " ", isolated(label(value)))));
  redrawChoices.push(redraw);
  redraw();
}

function listen() {
  byId("bar").addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) open(tab.id.slice(4));
  });
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) open(VIEWS[(VIEWS.indexOf(view) + by + VIEWS.length) % VIEWS.length], true);
  });
  byId("scores").addEventListener("click", (event) => {
    const button = event.target.closest("button.cell");
    if (button) openCell(cells[Number(button.dataset.cell)]);
  });
  byId("reset").addEventListener("click", () => {
    Object.assign(chosen, { names: new Set(names), tasks: new Set(tasks), lengths: new Set(lengths), outcomes: new Set(Object.keys(SIGNS)), beside: "", differ: false, find: "", depth: null });
    opened.beside = "";
    for (const box of byId("outcomes").querySelectorAll("input")) box.checked = true;
    Object.assign(byId("differ"), { checked: false });
    byId("find").value = byId("beside").value = "";
    for (const redraw of redrawChoices) redraw();
    refresh();
  });
  byId("outcomes").addEventListener("change", (event) => {
    if (event.target.checked) chosen.outcomes.add(event.target.value);
    else chosen.outcomes.delete(event.target.value);
    refresh();
  });
  byId("beside").addEventListener("change", (event) => {
    chosen.beside = opened.beside = event.target.value;
    if (!chosen.beside) chosen.differ = byId("differ").checked = false;
    refresh();
    if (opened.row >= 0) drawExample();
  });
  byId("differ").addEventListener("change", (event) => {
    chosen.differ = event.target.checked;
    refresh();
  });
  let waiting = 0;
  byId("find").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      chosen.find = event.target.value;
      refresh();
    }, 150);
  });
  byId("depth").addEventListener("click", () => {
    chosen.depth = null;
    refresh();
  });
  // One filter open at a time; a click elsewhere or Escape closes it.
  document.addEventListener("click", (event) => closeChoices(event.target.closest("details.choice")));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const focused = document.activeElement?.closest("details.choice[open] ");
    closeChoices(null);
    focused?.querySelector("summary").focus();
    showTip(null);
  });
  window.addEventListener("beforeprint", () => {
    drawHeatmaps();
    for (const element of [...unseen.keys()]) see(element);
  });
  window.addEventListener("scroll", () => showTip(null), { passive: true });
}

function closeChoices(besides) {
  for (const other of document.querySelectorAll("details.choice[open]")) if (other !== besides) other.open = false;
}

DataTable.ext.errMode = "throw";
choice("methods", names, "names", (name) => name);
choice("tasks", tasks, "tasks", (task) => task);
choice("lengths", lengths, "lengths", lengthLabel);
for (const name of names) byId("beside").append(make("option", { value: name }, name));
sortTables();
listen();
open(VIEWS.find((name) => location.hash === `#view=${name}`) ?? "scores");
document.documentElement.dataset.ready = String(Math.round(performance.now()));
