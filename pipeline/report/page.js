// The feature browser. Texts come from data sets: they reach the page as text nodes, never as HTML.
"use strict";

(() => {
  const { before, runs } = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const [search, sort, chooser, list, detail, tip] =
    ["search", "sort", "run", "list", "detail", "tip"].map(at);
  const SVG = "http://www.w3.org/2000/svg";
  const BINS = 24, COLOURED = 6;
  const ORDERS = {
    frequency: (f) => -f.nActive,
    max: (f) => -f.max,
    dead: (f) => -(f.deadCosine ?? -2),
    index: (f) => f.index,
  };
  const state = { run: 0, index: null, order: [] };

  // --- building blocks -----------------------------------------------------------------------

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
  const link = (index) => `#${runs.length > 1 ? `run=${state.run + 1}&` : ""}feature=${index}`;
  const run = () => runs[state.run];
  const found = (index) => run().features.find((f) => f.index === index);
  const token = (place) => run().tokens[place];
  const piece = (place) => token(place) || "◌"; // part of a character that stands at another token
  const shown = (place) => make("span", { class: "text" }, token(place));

  // --- the list ------------------------------------------------------------------------------

  // What a search looks through: promoted tokens and contexts, in lower case; made once.
  function haystack(feature) {
    feature.haystack ??= [
      ...feature.promoted.map(([place]) => token(place).trim()),
      ...[...feature.top, ...feature.spread].map((e) => e.tokens.map(token).join("")),
    ].join("\n").toLowerCase();
    return feature.haystack;
  }

  function matches(feature, words) {
    if (/^#?\d+$/.test(words)) {
      if (String(feature.index).startsWith(words.replace("#", ""))) return true;
    }
    return haystack(feature).includes(words);
  }

  // The tokens it fires on most, each once.
  function peek(feature) {
    const tokens = feature.top.map((e) => token(e.tokens[peakOf(e)]).trim());
    return feature.nActive ? [...new Set(tokens)].filter(Boolean).slice(0, 4).join("  ") : "dead";
  }

  function refill() {
    const words = search.value.trim().toLowerCase();
    const key = ORDERS[sort.value];
    state.order = run().features
      .filter((f) => !words || matches(f, words))
      .sort((a, b) => (String(b.index) === words) - (String(a.index) === words)
        || key(a) - key(b) || a.index - b.index);
    list.replaceChildren(...state.order.map((f) =>
      make("li", null,
        make("a", { href: link(f.index), "data-index": f.index },
          make("span", null, String(f.index)),
          make("span", { class: "peek" }, make("bdi", null, peek(f))),
          make("span", { class: "rate" }, percent(f.frequency))))));
    at("count").textContent =
      `${count(state.order.length)} of ${count(run().features.length)} features on this page`;
    mark();
  }

  // Show in the list, and on the buttons, where the reader is. The tabulator stops at one link.
  function mark() {
    const place = state.order.findIndex((f) => f.index === state.index);
    [...list.querySelectorAll("a")].forEach((a, i) => {
      a.tabIndex = i === Math.max(0, place) ? 0 : -1;
      if (i !== place) return a.removeAttribute("aria-current");
      a.setAttribute("aria-current", "true");
      if (list.contains(document.activeElement)) a.focus({ preventScroll: true });
      const [outer, inner] = [list.getBoundingClientRect(), a.getBoundingClientRect()];
      if (inner.top < outer.top || inner.bottom > outer.bottom) {
        list.scrollTop += inner.top - outer.top - outer.height / 3;
      }
    });
    at("previous").disabled = !state.order.length || place === 0;
    at("next").disabled = !state.order.length || place === state.order.length - 1;
  }

  function step(by) {
    const place = state.order.findIndex((f) => f.index === state.index);
    const next = state.order[place < 0 ? 0 : place + by];
    if (next) location.hash = link(next.index);
  }

  // --- one feature ---------------------------------------------------------------------------

  // Where in an example the token is that it is about.
  function peakOf(example) {
    return Math.min(before, example.position, example.tokens.length - 1);
  }

  function context(example, max) {
    const peak = peakOf(example);
    const spans = example.tokens.map((place, i) => {
      const value = example.values[i];
      const name = i === peak ? "token peak" : "token";
      if (!(value > 0)) return make("span", { class: name }, i === peak ? piece(place) : token(place));
      const part = make("mark", {
        class: name, tabindex: i === peak ? 0 : -1, "aria-describedby": "tip",
      }, piece(place));
      part.told = [shown(place), ` ${number(value)}, ${percent(value / max)} of the largest`];
      part.style.setProperty("--share", Math.min(1, value / max).toFixed(2));
      return part;
    });
    return make("li", { title: `context ${count(example.context)}, token ${example.position}` },
      make("span", { class: "value" }, aligned(example.values[peak], max)),
      make("span", { class: "context" }, ...spans));
  }

  function examples(feature, title, note, chosen) {
    return [
      make("h4", null, title),
      note && make("p", { class: "note" }, note),
      make("ol", { class: "examples" }, ...chosen.map((e) => context(e, feature.max))),
    ];
  }

  // Contexts drawn at random, in descending order, as quarters: what a feature means is not only
  // what it fires on most.
  function quarters(feature) {
    const all = feature.spread;
    if (all.length < 8) return examples(feature, "Contexts drawn at random", "", all);
    const names = ["strongest quarter", "second quarter", "third quarter", "weakest quarter"];
    return names.flatMap((name, i) => {
      const [from, to] = [i, i + 1].map((q) => Math.round((q * all.length) / 4));
      const note = i ? "" : "Drawn at random from all contexts it is active in, by activation.";
      return examples(feature, `At random: ${name}`, note, all.slice(from, to));
    });
  }

  function histogram(feature) {
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
        ...common.map((place, i) => key(i, shown(place), ` ${totals.get(place)}`)),
        others ? key(common.length, `other tokens ${others}`) : null),
      make("p", { class: "note" },
        `${count(feature.sample.length)} of its ${count(feature.nActive)} activations, at random.`));
  }

  function effects(title, pairs) {
    return make("div", null, make("h4", null, title),
      make("ul", { class: "effects" }, ...pairs.map(([place, effect]) =>
        make("li", null, shown(place), make("span", null, number(effect))))));
  }

  function logits(feature) {
    if (!feature.promoted.length) return null;
    return make("div", { class: "pair" },
      effects("Promotes", feature.promoted), effects("Suppresses", feature.suppressed));
  }

  function neighbours(feature) {
    if (!feature.neighbours.length) return null;
    return make("div", null, make("h4", null, "Nearest features"),
      make("ul", { class: "effects" }, ...feature.neighbours.map(([index, cosine]) =>
        make("li", null,
          found(index) ? make("a", { href: link(index) }, `feature ${index}`)
            : make("span", { class: "muted" }, `feature ${index}`),
          make("span", null, number(cosine))))));
  }

  function numbers(feature) {
    const facts = [
      ["fires on", feature.nActive
        ? `${percent(feature.frequency)} of tokens (${count(feature.nActive)})` : "nothing"],
      ["mean activation", number(feature.mean)],
      ["largest", number(feature.max)],
      ["encoder-decoder cosine", number(feature.encoderDecoder)],
      ["dead-feature cosine", number(feature.deadCosine)],
    ];
    return make("dl", { class: "stats" }, ...facts.map(([name, value]) =>
      make("div", null, make("dt", null, name), make("dd", null, value))));
  }

  function show(feature) {
    at("heading").textContent = `Feature ${feature.index}`;
    const side = make("div", null, feature.sample.length ? histogram(feature) : null,
      logits(feature), neighbours(feature));
    const contexts = feature.nActive
      ? [...examples(feature, "Strongest contexts", "", feature.top), ...quarters(feature)]
      : [make("p", null,
        `Dead: above zero on none of the ${count(run().nTokens)} tokens that were read.`)];
    at("body").replaceChildren(numbers(feature),
      make("div", { class: "columns" }, make("div", null, ...contexts.filter(Boolean)), side));
  }

  function say(heading, words) {
    at("heading").textContent = heading;
    at("body").replaceChildren(make("p", null, words));
  }

  // --- where the reader is -------------------------------------------------------------------

  function route({ scroll }) {
    const asked = new URLSearchParams(location.hash.slice(1));
    const place = Number(asked.get("run") ?? 1) - 1;
    const moved = runs[place] && place !== state.run && (asked.has("feature") || asked.has("run"));
    if (moved) state.run = place;
    chooser.value = String(state.run);
    if (moved || !state.order.length) refill();
    hint(null);
    if (asked.has("feature")) {
      state.index = Number(asked.get("feature"));
      if (scroll) at("features").scrollIntoView({ behavior: "instant" });
    } else if (moved || state.index === null || !location.hash) {
      state.index = state.order[0]?.index ?? null;
    }
    const feature = found(state.index);
    if (feature) show(feature);
    else if (!run().features.length) say("No features yet", `They are made by: ${run().command}`);
    else say(`Feature ${state.index}`, "It is not among the features on this page.");
    mark();
  }

  // --- values of tokens, for mouse, touch and keyboard ----------------------------------------

  function hint(part) {
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
    detail.addEventListener(name, (event) => hint(markOf(event)));
  }
  detail.addEventListener("pointerleave", () => hint(null));
  detail.addEventListener("focusout", () => hint(null));
  addEventListener("scroll", () => hint(null), { passive: true });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hint(null);
    const upright = list.contains(event.target) ? { ArrowUp: -1, ArrowDown: 1 } : {};
    const by = { ArrowLeft: -1, ArrowRight: 1, ...upright }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (event.target.closest("input, select, .scroll")) return;
    const part = markOf(event);
    if (part) { // from one lit token of the context to the next
      const parts = [...part.parentNode.querySelectorAll("mark")];
      parts[parts.indexOf(part) + by]?.focus();
    } else step(by);
    event.preventDefault();
  });

  // --- start ---------------------------------------------------------------------------------

  at("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = getComputedStyle(root).colorScheme === "dark" ||
      (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    root.dataset.theme = dark ? "light" : "dark";
  });
  search.addEventListener("input", refill);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && state.order.length) location.hash = link(state.order[0].index);
  });
  sort.addEventListener("change", refill);
  chooser.addEventListener("change", () => { location.hash = `#run=${Number(chooser.value) + 1}`; });
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  addEventListener("hashchange", () => route({ scroll: false }));
  route({ scroll: true });
})();
