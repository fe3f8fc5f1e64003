// The data of the page and what of it is chosen. The examples are parsed when they are first needed.

const overview = JSON.parse(document.getElementById("overview-data").textContent);
const cells = overview.cells.map((cell, number) => ({
  ...cell,
  number,
  name: overview.texts[cell.name],
  task: overview.texts[cell.task],
  metric: overview.texts[cell.metric],
  provenance: cell.provenance.map(([label, text]) => [overview.texts[label], overview.texts[text]]),
}));

const unique = (values) => [...new Set(values)];
const names = unique(cells.map((cell) => cell.name));
const tasks = unique(cells.map((cell) => cell.task));
const lengths = unique(cells.map((cell) => cell.length)).sort((a, b) => a - b);
const lengthLabel = (length) => (length === 0 ? "natural" : `${length.toLocaleString("en")} tokens`);

const chosen = {
  names: new Set(names),
  tasks: new Set(tasks),
  lengths: new Set(lengths),
  outcomes: new Set(["right", "partly", "wrong", "loss"]),
  beside: "",
  differ: false,
  find: "",
  depth: null, // of one square of a heatmap
};

const isShown = (cell) => chosen.names.has(cell.name) && chosen.tasks.has(cell.task) && chosen.lengths.has(cell.length);

let parsed = null;

/** Return the examples: texts, prompts, columns of rows, and which rows stand on the same prompt. */
function examples() {
  if (parsed) return parsed;
  const source = document.getElementById("examples-data");
  parsed = JSON.parse(source.textContent);
  source.remove(); // its text is not needed twice
  parsed.number = parsed.rows.cell.length;
  parsed.byPrompt = new Map();
  parsed.rows.prompt.forEach((prompt, row) => {
    const cell = cells[parsed.rows.cell[row]];
    const key = `${prompt} ${cell.length} ${cell.task}`;
    if (!parsed.byPrompt.has(key)) parsed.byPrompt.set(key, []);
    parsed.byPrompt.get(key).push(row);
  });
  return parsed;
}

const cellOf = (row) => cells[examples().rows.cell[row]];
const promptOf = (row) => examples().prompts[examples().rows.prompt[row]];
const textOf = (row) => {
  const place = examples().rows.text[row];
  return place === null ? null : examples().texts[place];
};
const scoreOf = (row) => examples().rows.score[row];
const referencesOf = (row) => promptOf(row).references.map((place) => examples().texts[place]);
const numberOf = (row) => Number(examples().rows.id[row]);

/** Return the rows of other methods on the same example: same task, length and hash. */
function siblings(row) {
  const cell = cellOf(row);
  return examples().byPrompt.get(`${examples().rows.prompt[row]} ${cell.length} ${cell.task}`) ?? [];
}

/** Return the row of a method on the same example, or undefined where it has none. */
function sibling(row, name) {
  return siblings(row).find((other) => cellOf(other).name === name);
}

/** Return what became of an example: right, partly, wrong, or loss where nothing is graded. */
function outcomeOf(row) {
  if (!cellOf(row).percent || scoreOf(row) === null) return "loss";
  const score = cellOf(row).higher ? scoreOf(row) : 1 - scoreOf(row);
  return score >= 1 ? "right" : score <= 0 ? "wrong" : "partly";
}

const SIGNS = { right: "✓", partly: "◐", wrong: "✗", loss: "·" };

/** Return a score as people read it, in % or in the metric's own unit. */
function scoreText(row) {
  const score = scoreOf(row);
  if (score === null) return "no number";
  if (!cellOf(row).percent) return `${score.toFixed(3)}${cellOf(row).metric === "token_loss" ? " nats a token" : ""}`;
  return `${(100 * score).toFixed(100 * score % 1 ? 1 : 0)} %`;
}
