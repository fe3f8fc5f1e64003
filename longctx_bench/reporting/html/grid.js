// The grids. DataTables sorts and pages; it is given row numbers, and elements only for the rows on screen, so that
// no text of a model ever passes through it.

const GRID = {
  autoWidth: false,
  searching: false,
  lengthChange: false,
  pageLength: 25,
  order: [],
  layout: { topStart: null, topEnd: null, bottomStart: "info", bottomEnd: "paging" },
  language: { emptyTable: "Nothing matches the filters.", info: "_START_ to _END_ of _TOTAL_", infoEmpty: "none" },
};

/** Describe a column: its heading, what it is sorted by and the element that shows it, from a row's number. */
function column(title, key, show, kind = "num", className = "") {
  const render = (_, type, [row]) => (type === "display" ? make("span", {}, show(row)) : key(row));
  return { title, data: null, render, type: kind, className, orderSequence: ["asc", "desc", ""] };
}

const short = (text, most) => (text.length > most ? `${text.slice(0, most)}…` : text);

/** Return a sign and a score, told apart by shape and word as well as colour. */
function verdict(row) {
  const outcome = outcomeOf(row);
  return make("span", { class: `verdict ${outcome}`, title: outcome === "loss" ? "not graded" : outcome }, `${SIGNS[outcome]} ${scoreText(row)}`);
}

/** Return a name that its column may cut off, whole where it is pointed at. */
const titled = (name) => make("span", { title: name }, isolated(name));

const depthOf = (row) => promptOf(row).depths[0] ?? -1;

function openButton(row) {
  const label = `Example ${numberOf(row)} of ${cellOf(row).name}`;
  return make("button", { type: "button", class: "open", "data-row": row, "aria-label": label }, String(numberOf(row)));
}

const COLUMNS = [
  column("example", numberOf, openButton, "num", "number"),
  column("score", (row) => scoreOf(row) ?? -1, verdict, "num", "number"),
  column("beside", (row) => besideScore(row), (row) => besideVerdict(row), "num", "number"),
  column("model", (row) => cellOf(row).name, (row) => titled(cellOf(row).name), "string", "name"),
  column("task", (row) => cellOf(row).task, (row) => titled(cellOf(row).task), "string", "name"),
  column("length", (row) => cellOf(row).length, (row) => lengthLabel(cellOf(row).length).replace(" tokens", ""), "num", "number"),
  column("depth (%)", depthOf, (row) => promptOf(row).depths.map((depth) => +depth.toPrecision(4)).join(", "), "num", "number name"),
  column("references", (row) => referencesOf(row).join(" "), (row) => isolated(short(referencesOf(row).join(" | "), 48), true), "string", "text"),
  column("generation", (row) => textOf(row) ?? "", (row) => isolated(short((textOf(row) ?? "").trim(), 72), true), "string", "text"),
];
const BESIDE = 2;

function besideScore(row) {
  const other = sibling(row, chosen.beside);
  return other === undefined ? -1 : scoreOf(other) ?? -1;
}

function besideVerdict(row) {
  const other = sibling(row, chosen.beside);
  return other === undefined ? "" : verdict(other);
}

/** Return the numbers of the rows that pass every filter, in the page's order. */
function matching() {
  const data = examples();
  const wanted = cells.map(isShown);
  const sought = chosen.find.toLowerCase();
  // Each text is searched once however many examples share it.
  const holds = sought ? data.texts.map((text) => text.toLowerCase().includes(sought)) : null;
  const found = [];
  for (let row = 0; row < data.number; row += 1) {
    if (!wanted[data.rows.cell[row]] || !chosen.outcomes.has(outcomeOf(row))) continue;
    if (chosen.depth !== null && depthOf(row) !== chosen.depth) continue;
    if (holds && !holds[data.rows.text[row]] && !promptOf(row).references.some((place) => holds[place])) continue;
    if (chosen.beside) {
      const other = sibling(row, chosen.beside);
      if (other === undefined || other === row || (chosen.differ && scoreOf(other) === scoreOf(row))) continue;
    }
    found.push(row);
  }
  return found;
}

let grid = null;

function drawGrid() {
  const rows = matching();
  const all = examples().number;
  document.getElementById("count").textContent = rows.length === all
    ? `${all.toLocaleString("en")} examples`
    : `${rows.length.toLocaleString("en")} of ${all.toLocaleString("en")} examples match`;
  const data = rows.map((row) => [row]);
  if (grid) {
    grid.column(BESIDE).visible(Boolean(chosen.beside), false);
    grid.clear().rows.add(data).draw();
  } else {
    const columns = COLUMNS.map((own, place) => ({ ...own, visible: place !== BESIDE || Boolean(chosen.beside) }));
    grid = new DataTable("#grid", { ...GRID, columns, data });
    const body = document.querySelector("#grid tbody");
    body.addEventListener("click", (event) => {
      const button = event.target.closest("tr")?.querySelector("button.open");
      if (button) openExample(Number(button.dataset.row));
    });
    grid.on("draw", markOpen);
  }
  markOpen();
}

/** Mark the row of the example that is open. */
function markOpen() {
  for (const button of document.querySelectorAll("#grid button.open")) {
    const own = Number(button.dataset.row) === opened.row;
    button.closest("tr").classList.toggle("chosen", own);
    if (own) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

let origins = null;

function drawProvenance() {
  const labels = unique(cells.flatMap((cell) => cell.provenance.map(([label]) => label)));
  const value = (row, label) => cells[row].provenance.find(([own]) => own === label)?.[1] ?? "";
  const data = cells.filter(isShown).map((cell) => [cell.number]);
  if (origins) {
    origins.clear().rows.add(data).draw();
    return;
  }
  const columns = [
    column("model", (row) => cells[row].name, (row) => isolated(cells[row].name), "string"),
    column("task", (row) => cells[row].task, (row) => isolated(cells[row].task), "string"),
    column("length", (row) => cells[row].length, (row) => lengthLabel(cells[row].length).replace(" tokens", ""), "num", "number"),
    column("score [95 % interval]", (row) => cells[row].score ?? -1, (row) => cells[row].shownScore, "num", "number"),
    column("n", (row) => cells[row].n, (row) => String(cells[row].n), "num", "number"),
    ...labels.map((label) => column(label, (row) => value(row, label), (row) => isolated(value(row, label)), "string", label === "versions" ? "text" : "")),
  ];
  origins = new DataTable("#origins", { ...GRID, columns, data });
}

/** Let DataTables sort the tables that stand in the page already. */
function sortTables() {
  const layout = { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null };
  const columnDefs = [{ targets: 0, orderSequence: ["asc", "desc", ""] }, { targets: "_all", orderSequence: ["desc", "asc", ""] }];
  for (const table of document.querySelectorAll("table.sortable")) {
    whenSeen(table, () => {
      for (const button of table.querySelectorAll("button.cell")) drawWhisker(button, cells[Number(button.dataset.cell)]);
      new DataTable(table, { ...GRID, paging: false, info: false, layout, columnDefs });
    });
  }
}

/** Draw a rate and its interval on a line from 0 to 100 %. */
function drawWhisker(button, { percent: rate, low, score, high }) {
  if (!rate || low === null || score === null || high === null) return;
  const svg = vector("svg", { class: "whisker", viewBox: "-2 0 104 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    vector("path", { class: "track", d: "M0 3H100" }),
    vector("path", { class: "range", d: `M${100 * low} 3H${100 * high}` }),
    vector("path", { class: "dot", d: `M${100 * score} .5v5` }));
  button.append(svg);
}
