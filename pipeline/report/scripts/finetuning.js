// A link to a feature opens it.
function openMoved() {
  const node = at(location.hash.slice(1));
  if (node?.matches("details.moved") && !node.open) {
    node.open = true;
    node.scrollIntoView({ behavior: "instant" });
  }
}

addEventListener("hashchange", openMoved);
openMoved();
