// The outputs of connectors: equations, graphs, and the examples of what they are about.

const OPEN = 3;
const ALONE = ["first only", "second only", "both", "neither"];
const SPOKEN = {
  or: (a, b) => [a, " OR ", b],
  and: (a, b) => [a, " AND ", b],
  "and-not": (a, b) => [a, " AND NOT ", b],
};
const ORDINAL = { or: 0, "and-not": 1, and: 2 };
const round = (x, digits) => Number(x.toPrecision(digits));
const signed = (x) => `${x < 0 ? "−" : "+"}${round(Math.abs(x), 2)}`;

const wordsOf = (feature, tokens) => (feature ? peaks(feature.top, tokens) : []);
const texts = (words) => words.flatMap((word, i) => [i ? " " : null, shown(word)])
  .filter((part) => part !== null);

// What leads to the examples of an input, on the same page.
function toInput(index) {
  const button = make("button", { type: "button", class: "link" }, `IF${index}`);
  button.addEventListener("click", () => {
    const there = at(`input-${index}`);
    there.open = true;
    there.scrollIntoView({ block: "nearest" });
    there.querySelector("summary").focus({ preventScroll: true });
  });
  return button;
}

// `OF30 = 0.26 IF2797 + 0.23 IF259 − 0.10 IF946 + 2 more`
function equation(output) {
  const terms = output.terms.flatMap(([index, weight], i) => [
    i || weight < 0 ? (weight < 0 ? " − " : " + ") : "", `${round(Math.abs(weight), 2)} `,
    toInput(index),
  ]);
  const bias = output.bias ? ` ${output.bias < 0 ? "−" : "+"} ${round(Math.abs(output.bias), 2)}` : "";
  const more = output.nFurther > 0 ? ` + ${count(output.nFurther)} more` : "";
  return make("p", { class: "equation" }, `OF${output.index} = `, ...(terms.length ? terms : ["0"]),
    bias, make("span", { class: "muted" }, more));
}

// Inputs at the left, the output at the right; between them an edge as wide as the weight is large.
function graph(output, { tokens, inputs }) {
  const n = output.terms.length;
  if (!n) return null;
  const largest = Math.max(...output.terms.map(([, weight]) => Math.abs(weight)));
  const edges = output.terms.map(([, weight], i) => {
    const y = ((i + 0.5) / n) * 100;
    const end = 50 + (i - (n - 1) / 2) * (20 / n);
    return draw("path", {
      class: weight < 0 ? "minus" : "plus", d: `M0 ${y} C55 ${y} 45 ${end} 100 ${end}`,
      "stroke-width": (1 + (7 * Math.abs(weight)) / largest).toFixed(2),
    });
  });
  const nodes = output.terms.map(([index, weight]) =>
    make("li", { class: weight < 0 ? "minus" : "plus" },
      make("span", { class: "name" }, toInput(index), make("b", null, signed(weight))),
      make("span", { class: "peaks" }, ...texts(wordsOf(inputs[index], tokens)))));
  return make("div", { class: "graph" },
    make("ul", null, ...nodes),
    draw("svg", {
      viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img",
      "aria-label": `${n} inputs of output ${output.index}; positive weights are blue, negative red`,
    }, ...edges),
    make("div", { class: "out" },
      make("b", null, `OF${output.index}`),
      make("span", { class: "peaks" }, ...texts(wordsOf(output, tokens)))));
}

// What each term adds on average where it matters, and what removing its input takes away: as the
// connector predicts, and in the model.
function termTable(output) {
  if (!output.terms.length) return null;
  const removed = output.terms.filter((term) => term.length > 4);
  const largest = Math.max(...removed.flatMap(([, , , , linear, real]) => [linear, real].map(Math.abs)));
  const head = ["adds", "share", ...(removed.length ? ["predicted", "true"] : [])];
  const drop = (x) => make("td", { class: "number" },
    x === undefined ? "-" : number(x), x === undefined ? null : bar(Math.abs(x) / largest, x < 0));
  const rows = output.terms.map(([index, , contribution, share, linear, real, n]) =>
    make("tr", n ? { title: `over ${count(n)} tokens on which the input is active` } : null,
      make("th", { scope: "row" }, toInput(index)),
      ...[number(contribution), percent(share)].map((text) =>
        make("td", { class: "number" }, text)),
      ...(removed.length ? [drop(linear), drop(real)] : [])));
  const group = removed.length
    ? [make("tr", null, make("td", { colspan: 3 }),
      make("th", { class: "number", colspan: 2, scope: "colgroup" }, "its removal takes away"))]
    : [];
  return make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Terms" },
    make("h4", null, "Terms"), make("table", { class: "terms" },
      make("thead", null, ...group, make("tr", null, make("td", null), ...head.map((name) =>
        make("th", { class: "number", scope: "col" }, name)))),
      make("tbody", null, ...rows)),
    make("p", { class: "note" }, "Added on average where the output is active; taken away by " +
      "negative weights where it is not, although an input that adds is."));
}

function bar(share, negative) {
  const wide = Number.isFinite(share) ? 100 * share : 0;
  return draw("svg", { class: "bar-of", viewBox: "0 0 100 8", preserveAspectRatio: "none",
    "aria-hidden": "true" },
  draw("rect", { class: "ground", width: 100, height: 8 }),
  draw("rect", { class: negative ? "minus" : "plus", width: wide.toFixed(1), height: 8 }));
}

function relation({ kind, a, b, inside, cells }) {
  const spoken = SPOKEN[kind](toInput(a), toInput(b));
  const lines = cells.map(([n, p], i) => make("li", null,
    make("span", null, ALONE[i]), bar(p ?? 0, false),
    make("span", { class: "number" }, p === null ? "-" : percent(p)),
    make("span", { class: "number muted" }, `of ${count(n)}`)));
  const part = kind === "and-not" && inside >= 0.5
    ? [make("p", { class: "note" }, `The second is active within the first on ${percent(inside)} of its tokens.`)]
    : [];
  return make("div", null, make("p", null, ...spoken),
    make("ul", { class: "cells" }, ...lines), ...part);
}

function relationsOf(output) {
  if (!output.relations.length) return null;
  const sorted = [...output.relations].sort((x, y) => ORDINAL[x.kind] - ORDINAL[y.kind]);
  return make("div", null, make("h4", null, "How often it is active, by which input is"),
    ...sorted.map(relation));
}

function exampleLists(feature, tokens) {
  const list = (examples) => make("ol", { class: "examples" },
    ...examples.map((e) => context(e, feature.max, tokens)));
  if (!feature?.top.length) {
    return [make("p", { class: "note" }, "Its examples have not been collected yet.")];
  }
  const random = feature.spread.length
    ? [make("p", { class: "note" }, "At random"), list(feature.spread)] : [];
  return [list(feature.top), ...random];
}

// Those of the first few stand open, so that the output's own are in sight.
function inputExamples([index, weight], place, { tokens, inputs }) {
  const feature = inputs[index];
  const fires = feature ? `fires on ${percent(feature.frequency)}` : "";
  return make("details", { class: "input", id: `input-${index}`, open: place < OPEN ? "" : null },
    make("summary", null, make("b", null, `IF${index}`),
      make("span", { class: weight < 0 ? "minus" : "plus" }, signed(weight)),
      make("span", { class: "peaks" }, ...texts(wordsOf(feature, tokens))),
      make("span", { class: "muted" }, fires)),
    ...exampleLists(feature, tokens));
}

function showOutput(output, browser) {
  const run = browser.run();
  return [
    equation(output),
    graph(output, run),
    stats([
      ["fires on", `${percent(output.frequency)} of tokens (${count(output.nActive)})`],
      ["variance explained", number(output.explained)],
      ["by these terms", number(output.explainedShown)],
      ["weights above 0.1", count(output.nAbove)],
    ]),
    make("div", { class: "columns even" }, termTable(output), relationsOf(output)),
    make("div", { class: "columns even" },
      make("div", null, make("h4", null, "Inputs"),
        ...output.terms.map((term, place) => inputExamples(term, place, run))),
      make("div", null, make("h4", null, "Output"), ...exampleLists(output, run.tokens))),
  ].filter(Boolean);
}

browse({
  section: "connections", item: "output", group: "connector", title: "Output", many: "outputs",
  runs: data.connectors,
  orders: {
    explained: (o) => -(o.explainedShown ?? -Infinity),
    frequency: (o) => -o.nActive,
    terms: (o) => o.nAbove,
    index: (o) => o.index,
  },
  haystack: (o, { tokens, inputs }) => [
    `of${o.index}`,
    ...o.terms.map(([index]) => `if${index} ${wordsOf(inputs[index], tokens).join(" ")}`),
    ...words([...o.top, ...o.spread], tokens),
  ],
  row: (o, { tokens }) => [wordsOf(o, tokens).join("  "), number(o.explainedShown)],
  show: showOutput,
});
