// Showing text that a model or a document wrote: text nodes only, what is invisible made visible.

const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/u;
const NAMES = new Map([
  [0x0, "null"], [0x7, "bell"], [0x8, "backspace"], [0xd, "carriage return"], [0x1b, "escape"], [0xad, "soft hyphen"],
  [0x61c, "Arabic letter mark"], [0x200b, "zero-width space"], [0x200e, "left-to-right mark"],
  [0x200f, "right-to-left mark"], [0x2028, "line separator"], [0x2029, "paragraph separator"],
  [0x202a, "left-to-right embedding"], [0x202b, "right-to-left embedding"], [0x202c, "pop directional formatting"],
  [0x202d, "left-to-right override"], [0x202e, "right-to-left override"], [0x2066, "left-to-right isolate"],
  [0x2067, "right-to-left isolate"], [0x2068, "first strong isolate"], [0x2069, "pop directional isolate"],
  [0xfeff, "byte order mark"],
]);
// Joiners shape letters and pictures; line feeds and tabs are layout.
const LAYOUT = new Set(["\n", "\t", "\u200c", "\u200d"]);

/** Make an element; children are nodes or strings, strings become text nodes. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Make an element of a drawing. */
function vector(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Return nodes for text, each invisible or reordering character replaced by a label that says which it is. */
function visible(text, oneLine = false) {
  const nodes = [];
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  for (const character of text) {
    if (oneLine && (character === "\n" || character === "\t")) {
      plain += character === "\n" ? "↵" : " ";
    } else if (INVISIBLE.test(character) && !LAYOUT.has(character)) {
      flush();
      const code = character.codePointAt(0);
      const label = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
      nodes.push(make("span", { class: "control", title: NAMES.get(code) ?? "invisible character" }, label));
    } else {
      plain += character;
    }
  }
  flush();
  return nodes;
}

/** Return an element that shows text isolated from the direction of what stands around it. */
function isolated(text, oneLine = false) {
  return make("bdi", {}, ...visible(text, oneLine));
}

/** Return the places of needles in text as [start, end], in order and not overlapping. */
function places(text, needles) {
  const found = [];
  for (const needle of needles) {
    if (needle.length < 2) continue; // a single letter stands everywhere
    for (let at = text.indexOf(needle); at >= 0 && found.length < 500; at = text.indexOf(needle, at + needle.length)) {
      found.push([at, at + needle.length]);
    }
  }
  found.sort((a, b) => a[0] - b[0] || b[1] - a[1]);
  let end = 0;
  return found.filter(([start, stop]) => start >= end && (end = stop));
}

/** Return nodes for text with every occurrence of a needle marked. */
function marked(text, needles) {
  const nodes = [];
  let at = 0;
  for (const [start, stop] of places(text, needles)) {
    nodes.push(...visible(text.slice(at, start)), make("mark", {}, ...visible(text.slice(start, stop))));
    at = stop;
  }
  return [...nodes, ...visible(text.slice(at))];
}

/** Return nodes for a prompt's part: the sentences that hold a needle tinted, the needle in them marked. */
function withNeedles(text, needles) {
  const nodes = [];
  let at = 0;
  for (const [start, stop] of places(text, needles)) {
    if (start < at) continue;
    const before = Math.max(at, ...[". ", "! ", "? ", "\n"].map((end) => {
      const place = text.lastIndexOf(end, start - 1);
      return place < 0 ? 0 : place + end.length;
    }));
    const rest = text.slice(stop).search(/[.!?](\s|$)|\n/u);
    const after = rest < 0 ? stop : stop + rest + (text[stop + rest] === "\n" ? 0 : 1);
    nodes.push(...visible(text.slice(at, before)));
    nodes.push(make("span", { class: "needle" }, ...marked(text.slice(before, after), needles)));
    at = after;
  }
  return [...nodes, ...visible(text.slice(at))];
}

const unseen = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) see(target);
}, { rootMargin: "300px" });

/** Do what an element needs when it comes near the screen: a page of many tables must not wait for all of them. */
function whenSeen(element, act) {
  unseen.set(element, act);
  watcher.observe(element);
}

function see(element) {
  const act = unseen.get(element);
  unseen.delete(element);
  watcher.unobserve(element);
  act?.();
}
