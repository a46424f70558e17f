// The page reads well without this: it adds tabs, a search, filters by category and sorting.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const sets = all(".set");
  const form = one(".tools");
  if (!form || !sets.length) return;
  const find = one("#find"), sort = one("#sort"), count = one("#count"), only = one("#only"), again = one("#again");
  const chips = all("button[data-category]", form);
  const buttons = all("button[aria-pressed]", form);
  const tabs = all(".tabs a");

  const card = (node) => ({
    node,
    index: Number(node.dataset.index),
    iou: Number.isFinite(Number(node.dataset.iou)) ? Number(node.dataset.iou) : -1,
    again: Number(node.dataset.again),
    label: node.dataset.label,
    category: node.dataset.category,
    good: "good" in node.dataset,
    text: `${node.dataset.label} ${node.dataset.category}`.toLowerCase(),
  });
  const cards = new Map(sets.map((set) => [set, all(".card", set).map(card)]));
  const language = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const orders = {
    iou: (a, b) => b.good - a.good || b.iou - a.iou || a.index - b.index,
    index: (a, b) => a.index - b.index,
    label: (a, b) => language.compare(a.label, b.label) || orders.iou(a, b),
    again: (a, b) => (b.again || 0) - (a.again || 0) || orders.iou(a, b),
  };
  const sorted = new Map(sets.map((set) => [set, "iou"])); // the order the page was written in
  let current = sets[0];

  const matches = (words) => (item) =>
    words.every((word) => (/^#\d+$/.test(word) ? item.index === Number(word.slice(1)) : item.text.includes(word)));

  function apply() {
    const list = cards.get(current);
    if (sorted.get(current) !== sort.value) {
      list.sort(orders[sort.value]);
      const end = current.querySelector(".none");
      end.before(...list.map((item) => item.node));
      sorted.set(current, sort.value);
    }
    const found = matches(find.value.toLowerCase().split(/\s+/).filter(Boolean));
    const pressed = new Set(chips.filter((chip) => chip.ariaPressed === "true").map((chip) => chip.dataset.category));
    const good = only.ariaPressed === "true", stable = again?.ariaPressed === "true";
    const tally = new Map();
    let shown = 0;
    for (const item of list) {
      const kept = found(item) && (!good || item.good) && !(stable && item.again < 0.5);
      if (kept) tally.set(item.category, (tally.get(item.category) ?? 0) + 1);
      item.node.hidden = !kept || (pressed.size > 0 && !pressed.has(item.category));
      shown += !item.node.hidden;
    }
    for (const chip of chips) chip.lastElementChild.textContent = tally.get(chip.dataset.category) ?? 0;
    count.textContent = `${shown} of ${list.length} direction${list.length === 1 ? "" : "s"}`;
    current.querySelector(".none").hidden = shown > 0 || list.length === 0;
  }

  function clear() {
    find.value = "";
    for (const chip of buttons) chip.ariaPressed = "false";
  }

  function show(set) {
    current = set;
    for (const other of sets) other.hidden = other !== set;
    for (const tab of tabs) {
      if (tab.hash === `#${set.id}`) tab.setAttribute("aria-current", "true");
      else tab.removeAttribute("aria-current");
    }
    const here = new Set(cards.get(set).map((item) => item.category));
    for (const chip of chips) {
      chip.hidden = !here.has(chip.dataset.category);
      if (chip.hidden) chip.ariaPressed = "false";
    }
    apply();
  }

  // #s2 is a set, #s2-d14 a direction in it: shown whatever tab and filter are on
  function follow() {
    const target = /^#s\d+(-d\d+)?$/.test(location.hash) && one(location.hash);
    if (!target) return;
    const set = target.closest(".set");
    if (set !== current) show(set);
    if (target.hidden) {
      clear();
      apply();
    }
    const goal = target === set ? one("#directions") : target;
    goal.scrollIntoView();
    // cards far away have only an estimated height until they are drawn: aim again once they are
    requestAnimationFrame(() => requestAnimationFrame(() => goal.scrollIntoView()));
  }

  let waiting = 0;
  find.addEventListener("input", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(apply);
  });
  sort.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const chip of buttons) {
    chip.addEventListener("click", () => {
      chip.ariaPressed = String(chip.ariaPressed !== "true");
      apply();
    });
  }
  for (const button of all(".reset")) {
    button.addEventListener("click", () => {
      clear();
      apply();
      find.focus();
    });
  }
  addEventListener("hashchange", follow);

  form.hidden = false;
  show(current);
  follow();
})();
