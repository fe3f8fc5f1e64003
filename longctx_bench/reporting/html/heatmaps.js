// Depth by length, one small table a method: readable by eye, keyboard and screen reader, and in print.

// viridis, as in the figures: even to the eye, safe for colour-blind readers, in order when printed grey.
const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];

function colour(share) {
  const place = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[low].map((value, at) => Math.round(value + (VIRIDIS[low + 1][at] - value) * (place - low)));
}

const percent = (value, digits = 0) => (100 * value).toFixed(digits);
let mapsDrawn = false;

function drawHeatmaps() {
  if (mapsDrawn) return;
  mapsDrawn = true;
  const ramp = document.getElementById("ramp");
  for (let step = 0; step < 24; step += 1) {
    const piece = make("span");
    piece.style.backgroundColor = `rgb(${colour(step / 23).join()})`;
    ramp.append(piece);
  }
  const holder = document.getElementById("maps");
  for (const task of tasks) {
    const gridded = cells.filter((cell) => cell.task === task && cell.depths.length);
    if (!gridded.length) continue;
    const sheet = make("div", { class: "sheet" });
    holder.append(make("article", { class: "task", "data-task": task }, make("h2", {}, isolated(task)), sheet));
    whenSeen(sheet, () => {
      for (const name of unique(gridded.map((cell) => cell.name))) {
        sheet.append(heatmap(name, gridded.filter((cell) => cell.name === name)));
      }
      applyFilters(sheet);
    });
  }
  if (!holder.children.length) {
    holder.append(make("p", {}, "No finished cell has a grid of depths; the task niah makes some."));
  }
  holder.addEventListener("click", (event) => {
    const square = event.target.closest("td[data-cell]");
    if (square) openSquare(square);
  });
  for (const kind of ["pointerover", "focusin"]) holder.addEventListener(kind, (event) => showTip(event.target.closest("td[data-cell]")));
  for (const kind of ["pointerleave", "focusout"]) holder.addEventListener(kind, () => showTip(null));
  holder.addEventListener("keydown", moveInMap);
}

function heatmap(name, own) {
  const depths = unique(own.flatMap((cell) => cell.depths.map(([depth]) => depth))).sort((a, b) => a - b);
  const last = Math.max(...own.filter((cell) => cell.length && cell.length <= cell.context).map((cell) => cell.length));
  const edge = (cell) => (cell.length === last && cell !== own[own.length - 1] ? "edge" : "");
  const head = make("tr", {}, make("th", { scope: "col", class: "corner" }, "depth"));
  for (const cell of own) {
    const scale = cell.length ? `${+(cell.length / cell.context).toPrecision(3)}x` : "";
    head.append(make("th", { scope: "col", class: edge(cell), "data-length": cell.length }, lengthLabel(cell.length).replace(" tokens", ""), make("small", {}, scale)));
  }
  const body = make("tbody");
  depths.forEach((depth, line) => {
    const row = make("tr", {}, make("th", { scope: "row" }, `${+depth.toPrecision(4)}`));
    own.forEach((cell, column) => {
      const found = cell.depths.find(([other]) => other === depth);
      const square = make("td", { class: edge(cell), "data-length": cell.length });
      if (found) {
        const shade = colour(found[1]);
        square.textContent = percent(found[1]);
        square.style.backgroundColor = `rgb(${shade.join()})`;
        square.style.color = shade[0] * 0.3 + shade[1] * 0.59 + shade[2] * 0.11 > 120 ? "#000" : "#fff";
        square.tabIndex = line || column ? -1 : 0; // one tab stop a map, arrow keys inside
        square.dataset.cell = cell.number;
        square.dataset.depth = depth;
      }
      row.append(square);
    });
    body.append(row);
  });
  const table = make("table", { class: "map" }, make("thead", {}, head), body);
  return make("figure", { "data-name": name }, make("figcaption", {}, isolated(name)), table);
}

/** Say all that is known of a square, beside it. */
function showTip(square) {
  const tip = document.getElementById("tip");
  tip.hidden = !square;
  if (!square) return;
  const cell = cells[Number(square.dataset.cell)];
  const [depth, mean, n, low, high] = cell.depths.find(([other]) => other === Number(square.dataset.depth));
  const interval = n === null ? "" : ` [${percent(low)}, ${percent(high)}], n = ${n}`;
  tip.replaceChildren(
    make("b", {}, isolated(cell.name)),
    make("span", {}, `${lengthLabel(cell.length)}, depth ${+depth.toPrecision(4)} %`),
    make("span", {}, `score ${percent(mean, 1)} %${interval}`),
  );
  const box = square.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(4, box.left + box.width / 2 - own.width / 2), document.documentElement.clientWidth - own.width - 4);
  const above = box.top - own.height - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
}

function openSquare(square) {
  const cell = cells[Number(square.dataset.cell)];
  showTip(null);
  openCell(cell, Number(square.dataset.depth));
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function moveInMap(event) {
  const square = event.target.closest("td[data-cell]");
  if (!square) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    openSquare(square);
  }
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  const row = square.parentElement;
  const next = row.parentElement.rows[row.sectionRowIndex + step[0]]?.cells[square.cellIndex + step[1]];
  if (!next?.dataset.cell) return;
  square.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}
