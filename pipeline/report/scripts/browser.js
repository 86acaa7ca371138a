// A list of a run's items, to search and sort, and one of them in full.
//
// What the page's address says belongs to one browser: `#feature=7`, `#run=2&feature=7`. A browser
// is told by `kind`:
//   section         the id of its section, which its other ids start with
//   item, group     the words for an item and its run in the address
//   title           of an item, and what `many` of them are called
//   runs            what it is about, each with `items`, and the `command` that makes them
//   orders          by name, what items are sorted by
//   haystack        the texts of an item that a search looks through
//   row             what stands in the list: a few words, and a number
//   show            what stands in the page of an item
const browsers = [];

function browse(kind) {
  const own = (name) => at(`${kind.section}-${name}`);
  const [search, sort, chooser, list] = ["search", "sort", "run", "list"].map(own);
  const state = { run: 0, index: null, order: [] };
  const run = () => kind.runs[state.run];
  const found = (index) => run().items.find((one) => one.index === index);
  const link = (index) =>
    `#${kind.runs.length > 1 ? `${kind.group}=${state.run + 1}&` : ""}${kind.item}=${index}`;
  const self = { run, found, link, section: at(kind.section) };

  // --- the list ------------------------------------------------------------------------------

  function matches(one, asked) {
    if (/^#?\d+$/.test(asked) && String(one.index).startsWith(asked.replace("#", ""))) return true;
    one.haystack ??= kind.haystack(one, run()).join("\n").toLowerCase();
    return one.haystack.includes(asked);
  }

  function refill() {
    const asked = search.value.trim().toLowerCase();
    const key = kind.orders[sort.value];
    state.order = run().items
      .filter((one) => !asked || matches(one, asked))
      .sort((a, b) => (String(b.index) === asked) - (String(a.index) === asked)
        || key(a) - key(b) || a.index - b.index);
    list.replaceChildren(...state.order.map((one) => {
      const [peek, rate] = kind.row(one, run());
      return make("li", null,
        make("a", { href: link(one.index), "data-index": one.index },
          make("span", null, String(one.index)),
          make("span", { class: "peek" }, make("bdi", null, peek)),
          make("span", { class: "rate" }, rate)));
    }));
    own("count").textContent =
      `${count(state.order.length)} of ${count(run().items.length)} ${kind.many} on this page`;
    mark();
  }

  // Show in the list, and on the buttons, where the reader is. The tabulator stops at one link.
  function mark() {
    const place = state.order.findIndex((one) => one.index === state.index);
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
    own("previous").disabled = !state.order.length || place === 0;
    own("next").disabled = !state.order.length || place === state.order.length - 1;
  }

  self.step = (by) => {
    const place = state.order.findIndex((one) => one.index === state.index);
    const next = state.order[place < 0 ? 0 : place + by];
    if (next) location.hash = link(next.index);
  };

  // --- where the reader is -------------------------------------------------------------------

  // Go to the item where it is out of sight: with the list, where that stands beside it.
  function reveal() {
    const [box, beside] = [own("detail"), list].map((node) => node.getBoundingClientRect());
    if (box.top < innerHeight / 2 && box.bottom > innerHeight / 4) return;
    const there = box.left >= beside.right ? self.section : own("detail");
    there.scrollIntoView({ behavior: "instant" });
  }

  const say = (heading, words) => {
    own("heading").textContent = heading;
    own("body").replaceChildren(make("p", null, words));
  };

  self.route = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    const mine = asked.has(kind.item) || asked.has(kind.group);
    const place = Number(asked.get(kind.group) ?? 1) - 1;
    const moved = mine && kind.runs[place] && place !== state.run;
    if (moved) state.run = place;
    chooser.value = String(state.run);
    if (moved || !state.order.length) refill();
    hint(null);
    if (asked.has(kind.item)) {
      state.index = Number(asked.get(kind.item));
    } else if (moved || state.index === null || !location.hash) {
      state.index = state.order[0]?.index ?? null;
    }
    const one = found(state.index);
    if (one) {
      own("heading").textContent = `${kind.title} ${one.index}`;
      own("body").replaceChildren(...kind.show(one, self));
    } else if (!run().items.length) {
      say(`No ${kind.many} yet`, `They are made by: ${run().command}`);
    } else {
      say(`${kind.title} ${state.index}`, `It is not among the ${kind.many} on this page.`);
    }
    mark();
    if (asked.has(kind.item)) reveal();
    if (mine || !browsers.current) browsers.current = self;
  };

  // --- start ---------------------------------------------------------------------------------

  search.addEventListener("input", refill);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && state.order.length) location.hash = link(state.order[0].index);
  });
  sort.addEventListener("change", refill);
  chooser.addEventListener("change", () => {
    location.hash = `#${kind.group}=${Number(chooser.value) + 1}`;
  });
  own("previous").addEventListener("click", () => self.step(-1));
  own("next").addEventListener("click", () => self.step(1));
  self.section.addEventListener("pointerdown", () => { browsers.current = self; });
  self.section.addEventListener("focusin", () => { browsers.current = self; });
  addEventListener("hashchange", self.route);
  browsers.push(self);
  self.route();
  return self;
}

// Arrows go from item to item of the browser last touched, or from lit token to lit token.
document.addEventListener("keydown", (event) => {
  const upright = event.target.closest?.(".list") ? { ArrowUp: -1, ArrowDown: 1 } : {};
  const by = { ArrowLeft: -1, ArrowRight: 1, ...upright }[event.key];
  if (!by || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (event.target.closest?.("input, select, .scroll")) return;
  const part = markOf(event);
  if (part) {
    const parts = [...part.parentNode.querySelectorAll("mark")];
    parts[parts.indexOf(part) + by]?.focus();
  } else browsers.current?.step(by);
  event.preventDefault();
});
