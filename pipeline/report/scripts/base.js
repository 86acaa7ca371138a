// What all parts of the page share. Texts come from data sets: they reach the page as text nodes,
// never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);

// --- building blocks -------------------------------------------------------------------------

function make(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const number = (x) => (x === null ? "-" : String(x));
// As many decimals as give the largest of a list three digits.
const aligned = (x, max) => x.toFixed(Math.min(9, Math.max(0, 2 - Math.floor(Math.log10(max)))));
const count = (n) => n.toLocaleString("en");
const percent = (x) =>
  x === 0 ? "0 %" : x < 1e-4 ? `${(x * 1e6).toPrecision(2)} ppm` : `${+(x * 100).toPrecision(2)} %`;

const stats = (facts) => make("dl", { class: "stats" }, ...facts.map(([name, value]) =>
  make("div", null, make("dt", null, name), make("dd", null, value))));

// --- contexts --------------------------------------------------------------------------------

// A token alone; what is part of a character, whose text stands at another token, is `◌` there.
const shown = (text) => make("span", { class: "text" }, text);
const piece = (text) => text || "◌";

// Where in an example the token is that it is about.
const peakOf = (example) => Math.min(data.before, example.position, example.tokens.length - 1);

// An example: its tokens lit by their activation, as a share of `max`; `tokens` is the table of
// their texts.
function context(example, max, tokens) {
  const peak = peakOf(example);
  const spans = example.tokens.map((place, i) => {
    const value = example.values[i];
    const text = tokens[place];
    const name = i === peak ? "token peak" : "token";
    if (!(value > 0)) return make("span", { class: name }, i === peak ? piece(text) : text);
    const part = make("mark", {
      class: name, tabindex: i === peak ? 0 : -1, "aria-describedby": "tip",
    }, piece(text));
    part.told = [shown(text), ` ${number(value)}, ${percent(value / max)} of the largest`];
    part.style.setProperty("--share", Math.min(1, value / max).toFixed(2));
    return part;
  });
  return make("li", { title: `context ${count(example.context)}, token ${example.position}` },
    make("span", { class: "value" }, aligned(example.values[peak], max)),
    make("span", { class: "context" }, ...spans));
}

// Spaces that are all there is of a token, to be seen.
const spaces = (text) => (text.length > 3 ? `${text.length}␣` : "␣".repeat(text.length));

// The tokens that the strongest examples are about, each once.
function peaks(examples, tokens) {
  const found = examples.map((e) => tokens[e.tokens[peakOf(e)]]);
  return [...new Set(found.map((text) => text.trim() || spaces(text)))].filter(Boolean).slice(0, 4);
}

const words = (examples, tokens) => examples.map((e) => e.tokens.map((t) => tokens[t]).join(""));

// --- values of tokens, for mouse, touch and keyboard -----------------------------------------

function hint(part) {
  const tip = at("tip");
  tip.hidden = !part;
  if (!part) return;
  tip.replaceChildren(...part.told);
  const [box, own] = [part.getClientRects()[0], tip.getBoundingClientRect()];
  const left = Math.min(Math.max(8, box.left), document.documentElement.clientWidth - own.width - 8);
  tip.style.left = `${left}px`;
  tip.style.top = `${box.top > own.height + 8 ? box.top - own.height - 6 : box.bottom + 6}px`;
}

const markOf = (event) => event.target.closest?.("mark.token") ?? null;
for (const name of ["pointerover", "focusin", "click"]) {
  document.addEventListener(name, (event) => hint(markOf(event)));
}
document.addEventListener("focusout", () => hint(null));
addEventListener("scroll", () => hint(null), { passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hint(null); });

at("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = getComputedStyle(root).colorScheme === "dark" ||
    (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
});
