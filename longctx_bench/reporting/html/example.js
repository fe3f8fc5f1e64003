// One example: its prompt's beginning and end, references, and one or two methods' generations beside each other.

const opened = { row: -1, beside: "" };

function openExample(row) {
  opened.row = row;
  opened.beside = chosen.beside || opened.beside;
  drawExample();
  markOpen();
  const detail = document.getElementById("detail");
  detail.focus({ preventScroll: true });
  detail.scrollTop = 0;
  // On a narrow screen the example stands below the list.
  if (detail.getBoundingClientRect().top > window.innerHeight * 0.6) detail.scrollIntoView({ block: "start" });
}

function drawExample() {
  const { row } = opened;
  const cell = cellOf(row);
  const other = opened.beside && opened.beside !== cell.name ? sibling(row, opened.beside) : undefined;
  const depths = promptOf(row).depths.map((depth) => `${+depth.toPrecision(4)} %`).join(", ");
  const facts = [lengthLabel(cell.length), depths && `needle depth ${depths}`, `prompt ${promptOf(row).hash.slice(0, 12)}`];
  const head = make("div", { class: "head" },
    make("h2", {}, isolated(cell.task), ` example ${numberOf(row)}`),
    make("p", { class: "hint" }, facts.filter(Boolean).join(", ")),
    make("p", { class: "steps" }, step("Previous", -1), step("Next", 1)));
  const answers = make("div", { class: other === undefined ? "answers" : "answers two" }, answer(row, row));
  if (other !== undefined) answers.append(answer(other, row));
  document.getElementById("detail").replaceChildren(...[head, answers, others(row), references(row), prompt(row), origin(row)].filter(Boolean));
}

/** Return a button to the row before or after in the grid, in its order and filters. */
function step(label, by) {
  const order = grid.rows({ order: "applied" }).data().toArray().map(([row]) => row);
  const next = order[order.indexOf(opened.row) + by];
  const go = () => {
    grid.page(Math.floor((order.indexOf(opened.row) + by) / grid.page.len())).draw("page");
    openExample(next);
    [...document.querySelectorAll("#detail .steps button")].find((own) => own.textContent === label && !own.disabled)?.focus();
  };
  return make("button", { type: "button", disabled: next === undefined, onclick: go }, label);
}

function answer(row, first) {
  const cell = cellOf(row);
  const text = textOf(row);
  const data = examples().rows;
  const end = examples().texts[data.end[row]];
  const read = data.given[row] === null ? [] : [`${data.given[row].toLocaleString("en")} prompt tokens read`];
  if (data.written[row]) read.push(`${data.written[row].toLocaleString("en")} written`);
  if (end) read.push(end);
  const shown = text === null
    ? losses(row)
    : make("div", { class: "generation", dir: "auto" }, ...(text ? marked(text, referencesOf(first)) : [make("i", {}, "empty")]));
  return make("section", { class: "answer", "data-name": cell.name },
    make("h3", {}, isolated(cell.name), " ", verdict(row)),
    shown,
    make("p", { class: "hint" }, `${read.join(", ")}; ${cell.metric}, ${cell.higher ? "higher" : "lower"} is better; the cell: ${cell.shownScore}`));
}

/** Return a small drawing of the loss by position, for examples that have one instead of a text. */
function losses(row) {
  const curve = examples().rows.curve[row];
  if (!curve?.length) return make("p", { class: "hint" }, "No generation was kept.");
  const values = curve.map(([, loss]) => loss);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [from, to] = [curve[0][0], curve[curve.length - 1][0]];
  const across = (at) => 4 + 292 * (at - from) / Math.max(1, to - from);
  const up = (loss) => 74 - 68 * (loss - low) / Math.max(1e-9, high - low);
  const label = `loss by position: ${low.toFixed(2)} to ${high.toFixed(2)} nats a token, tokens ${from.toLocaleString("en")} to ${to.toLocaleString("en")}`;
  const points = curve.map(([at, loss]) => `${across(at)},${up(loss)}`).join(" ");
  const svg = vector("svg", { viewBox: "0 0 300 80", class: "curve", role: "img", "aria-label": label }, vector("polyline", { points }));
  return make("figure", {}, svg, make("figcaption", { class: "hint" }, label));
}

/** Return buttons that lay another method beside this one, each with what it scored on the same example. */
function others(row) {
  const own = cellOf(row).name;
  const rows = siblings(row).filter((other) => cellOf(other).name !== own);
  if (!rows.length) return null;
  const buttons = rows.map((other) => {
    const { name } = cellOf(other);
    const outcome = outcomeOf(other);
    const choose = () => {
      opened.beside = opened.beside === name ? "" : name;
      drawExample();
      [...document.querySelectorAll("#detail .others button")].find((button) => button.dataset.name === name)?.focus();
    };
    return make("button", { type: "button", class: `other ${outcome}`, "data-name": name, "aria-pressed": String(opened.beside === name), title: scoreText(other), onclick: choose },
      make("span", { class: `verdict ${outcome}`, "aria-label": outcome }, SIGNS[outcome]), " ", isolated(name));
  });
  return make("section", { class: "others" }, make("h3", {}, "Beside it, on the same prompt"), make("div", {}, ...buttons));
}

function references(row) {
  const texts = referencesOf(row);
  if (!texts.length) return null;
  return make("section", {}, make("h3", {}, texts.length > 1 ? "References" : "Reference"),
    make("ul", { class: "references" }, ...texts.map((text) => make("li", { dir: "auto" }, ...visible(text)))));
}

function prompt(row) {
  const data = promptOf(row);
  const { texts } = examples();
  const cell = cellOf(row);
  const command = make("code", {}, ...visible(`longctx-bench show ${cell.name}/${cell.task}/${cell.lengthName} ${numberOf(row)} --out ${overview.folder}`));
  const title = make("h3", {}, "Prompt");
  if (data.begin === undefined) {
    return make("section", { class: "prompt" }, title,
      make("p", {}, "The run that made these results did not keep its prompts. This writes it again and checks its hash: ", command));
  }
  const needles = referencesOf(row);
  const box = make("div", { class: "excerpt", dir: "auto" }, ...withNeedles(texts[data.begin], needles));
  if (data.hidden) {
    const inside = data.needles.map((place) => make("div", { class: "needle inside" }, ...marked(texts[place], needles)));
    box.append(make("div", { class: "hidden-part" },
      make("p", { class: "hint" }, `${data.hidden.toLocaleString("en")} characters not shown${inside.length ? ", among them" : ""}`), ...inside));
  }
  box.append(...withNeedles(texts[data.end], needles));
  if (texts[data.prefix]) box.append(make("span", { class: "prefix", title: "answer prefix: the model goes on right after it" }, ...visible(texts[data.prefix])));
  return make("section", { class: "prompt" }, title, box, make("p", { class: "hint" }, "The whole prompt: ", command));
}

function origin(row) {
  const shown = [row, opened.beside ? sibling(row, opened.beside) : undefined].filter((own, place, all) => own !== undefined && all.indexOf(own) === place);
  return make("details", { class: "origin" }, make("summary", {}, "Where these numbers come from"),
    ...shown.map((own) => make("div", {}, make("h3", {}, isolated(cellOf(own).name)),
      make("dl", {}, ...cellOf(own).provenance.flatMap(([label, text]) => [make("dt", {}, label), make("dd", {}, isolated(text))])))));
}
