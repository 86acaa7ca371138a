// The features of sparse autoencoders.
const BINS = 24, COLOURED = 6;

function featureExamples(feature, title, note, chosen, tokens) {
  return [
    make("h4", null, title),
    note && make("p", { class: "note" }, note),
    make("ol", { class: "examples" }, ...chosen.map((e) => context(e, feature.max, tokens))),
  ].filter(Boolean);
}

// Contexts drawn at random, in descending order, as quarters: what a feature means is not only
// what it fires on most.
function quarters(feature, tokens) {
  const all = feature.spread;
  if (all.length < 8) return featureExamples(feature, "Contexts drawn at random", "", all, tokens);
  const names = ["strongest quarter", "second quarter", "third quarter", "weakest quarter"];
  return names.flatMap((name, i) => {
    const [from, to] = [i, i + 1].map((q) => Math.round((q * all.length) / 4));
    const note = i ? "" : "Drawn at random from all contexts it is active in, by activation.";
    return featureExamples(feature, `At random: ${name}`, note, all.slice(from, to), tokens);
  });
}

function histogram(feature, tokens) {
  const [width, height, foot, left] = [420, 150, 22, 26];
  const top = Math.max(...feature.sample.map(([, value]) => value));
  const totals = new Map();
  for (const [place] of feature.sample) totals.set(place, (totals.get(place) ?? 0) + 1);
  const common = [...totals].sort((a, b) => b[1] - a[1]).slice(0, COLOURED).map(([place]) => place);
  const bars = Array.from({ length: BINS }, () => Array(common.length + 1).fill(0));
  for (const [place, value] of feature.sample) {
    const colour = common.indexOf(place);
    const bin = Math.min(BINS - 1, Math.floor((BINS * value) / top));
    bars[bin][colour < 0 ? common.length : colour] += 1;
  }
  const tallest = Math.max(...bars.map((bar) => bar.reduce((a, b) => a + b)));
  const wide = (width - left) / BINS;
  const colour = (i) => (i < common.length ? `s${i}` : "rest");
  const rects = bars.flatMap((bar, bin) => {
    let y = height;
    return bar.map((n, i) => {
      const tall = (n / tallest) * (height - 8);
      y -= tall;
      return n === 0 ? null : draw("rect", {
        class: colour(i), x: left + bin * wide + 0.5, y, width: wide - 1, height: tall,
      });
    });
  });
  const text = (x, y, anchor, words) => draw("text", { x, y, "text-anchor": anchor }, words);
  const others = feature.sample.length - common.reduce((n, place) => n + totals.get(place), 0);
  const key = (i, ...words) => make("li", null,
    draw("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" },
      draw("rect", { class: colour(i), width: 1, height: 1 })), ...words);
  return make("div", { class: "histogram" },
    make("h4", null, "Activations by token"),
    draw("svg", {
      viewBox: `0 0 ${width} ${height + foot}`, role: "img",
      "aria-label": `Histogram of ${feature.sample.length} activations, from 0 to ${number(top)}`,
    }, ...rects,
    draw("line", { class: "axis", x1: left, x2: width, y1: height, y2: height }),
    text(left, height + 16, "middle", "0"),
    text((left + width) / 2, height + 16, "middle", number(Number((top / 2).toPrecision(2)))),
    text(width, height + 16, "end", number(top)), text(left - 5, 16, "end", String(tallest))),
    make("ul", { class: "legend" },
      ...common.map((place, i) => key(i, shown(tokens[place]), ` ${totals.get(place)}`)),
      others ? key(common.length, `other tokens ${others}`) : null),
    make("p", { class: "note" },
      `${count(feature.sample.length)} of its ${count(feature.nActive)} activations, at random.`));
}

function logits(feature, tokens) {
  if (!feature.promoted.length) return null;
  const effects = (title, pairs) => make("div", null, make("h4", null, title),
    make("ul", { class: "effects" }, ...pairs.map(([place, effect]) =>
      make("li", null, shown(tokens[place]), make("span", null, number(effect))))));
  return make("div", { class: "pair" },
    effects("Promotes", feature.promoted), effects("Suppresses", feature.suppressed));
}

function neighbours(feature, { found, link }) {
  if (!feature.neighbours.length) return null;
  return make("div", null, make("h4", null, "Nearest features"),
    make("ul", { class: "effects" }, ...feature.neighbours.map(([index, cosine]) =>
      make("li", null,
        found(index) ? make("a", { href: link(index) }, `feature ${index}`)
          : make("span", { class: "muted" }, `feature ${index}`),
        make("span", null, number(cosine))))));
}

function showFeature(feature, browser) {
  const { tokens, nTokens } = browser.run();
  const side = make("div", null, feature.sample.length ? histogram(feature, tokens) : null,
    logits(feature, tokens), neighbours(feature, browser));
  const contexts = feature.nActive
    ? [...featureExamples(feature, "Strongest contexts", "", feature.top, tokens),
      ...quarters(feature, tokens)]
    : [make("p", null, `Dead: above zero on none of the ${count(nTokens)} tokens that were read.`)];
  return [
    stats([
      ["fires on", feature.nActive
        ? `${percent(feature.frequency)} of tokens (${count(feature.nActive)})` : "nothing"],
      ["mean activation", number(feature.mean)],
      ["largest", number(feature.max)],
      ["encoder-decoder cosine", number(feature.encoderDecoder)],
      ["dead-feature cosine", number(feature.deadCosine)],
    ]),
    make("div", { class: "columns" }, make("div", null, ...contexts), side),
  ];
}

browse({
  section: "features", item: "feature", group: "run", title: "Feature", many: "features",
  runs: data.runs,
  orders: {
    frequency: (f) => -f.nActive,
    max: (f) => -f.max,
    dead: (f) => -(f.deadCosine ?? -2),
    index: (f) => f.index,
  },
  haystack: (f, { tokens }) => [
    ...f.promoted.map(([place]) => tokens[place].trim()),
    ...words([...f.top, ...f.spread], tokens),
  ],
  row: (f, { tokens }) =>
    [f.nActive ? peaks(f.top, tokens).join("  ") : "dead", percent(f.frequency)],
  show: showFeature,
});
