// The pages read well without this: it adds search, filters, sorting, a view that can be sent as an address, and keys.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const find = one("#find");
  const plain = (event) => !(event.ctrlKey || event.metaKey || event.altKey || event.shiftKey);

  // "/" goes to the search; on the page of a direction or class the arrows turn the page
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") for (const term of all(".term:hover, .term:focus")) term.classList.add("dismissed");
    if (event.key === "/" && find && event.target !== find && !event.target.closest?.("input, textarea")) {
      event.preventDefault();
      find.focus();
      find.select();
    }
    if (!plain(event) || event.target.closest?.("input, select, textarea, .scroll")) return;
    const turn = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    const link = turn && one(`link[rel="${turn}"]`);
    if (link) location.href = link.href;
  });

  // Escape closes a definition until one points or steps on it again
  for (const left of ["pointerout", "focusout"]) {
    addEventListener(left, (event) => event.target.closest?.(".term")?.classList.remove("dismissed"));
  }

  // the map is one stop of the Tab key: arrows go to the next point that way
  const map = one(".map");
  const points = map ? all(".point", map) : [];
  const step = (to) => points.forEach((point) => point.setAttribute("tabindex", point === to ? "0" : "-1"));
  const ways = { ArrowLeft: ["x", -1], ArrowRight: ["x", 1], ArrowUp: ["y", -1], ArrowDown: ["y", 1] };
  map?.addEventListener("focusin", (event) => step(event.target.closest(".point")));
  map?.addEventListener("keydown", (event) => {
    const way = ways[event.key], from = event.target.closest(".point");
    if (!way || !from || !plain(event)) return;
    event.preventDefault();
    const place = (point) => point.querySelector("path").getBoundingClientRect()[way[0]];
    const order = [...points].sort((a, b) => place(a) - place(b));
    order[order.indexOf(from) + way[1]]?.focus();
  });
  step(points[0]);

  // names and comments of one's own: typed on a direction's page, kept in this browser by the digest of the directions file
  const { key: report, set } = one("main").dataset;
  const place = (index) => `eddp:${report}:${index}`;
  const kept = (index) => {
    try {
      return JSON.parse(localStorage.getItem(place(index)));
    } catch {
      return null;
    }
  };
  const own = one("#own");
  if (own) {
    const { index, heading, name: given, comment: remark } = own.dataset;
    const { name, comment } = own.elements;
    const called = one("#called");
    const shown = () => (called.textContent = name.value.trim() || (given ? `direction ${index}` : heading));
    const before = kept(index);
    if (before) [name.value, comment.value] = [before.name, before.comment];
    shown();
    own.hidden = false;
    own.addEventListener("submit", (event) => event.preventDefault());
    own.addEventListener("input", () => {
      shown();
      const said = { name: name.value.trim(), comment: comment.value.trim() };
      const same = said.name === given && said.comment === remark;
      try {
        if (same) localStorage.removeItem(place(index));
        else localStorage.setItem(place(index), JSON.stringify(said));
      } catch {
        one("#own output").textContent = "This browser keeps nothing for such pages: write names.csv yourself.";
      }
    });
  }

  const form = one("form.tools");
  if (!form) return;
  const { sort, way, class: klass } = form.elements;
  const reset = one("#reset");
  const chips = all("button[aria-pressed]", form);
  const press = (chip, on) => chip.setAttribute("aria-pressed", String(on));
  const pressed = (chip) => chip.getAttribute("aria-pressed") === "true";
  let read = null; // classes, and which of them each direction moves: as soon as somebody asks for one
  const moved = () => (read ??= JSON.parse(one("#moved").textContent));
  const fill = () => {
    if (klass.length === 1) klass.append(...moved().classes.map((name, k) => new Option(name, k)));
  };
  for (const asked of ["pointerenter", "focus"]) klass?.addEventListener(asked, fill);

  const number = (text) => (text ? Number(text) : NaN);
  for (const node of all(".dir[data-index]")) {
    const said = kept(node.dataset.index);
    if (!said) continue;
    Object.assign(node.dataset, said);
    if (!said.name) continue;
    node.dataset.label = `${said.name} ${node.dataset.label}`;
    node.querySelector("h3 bdi").textContent = said.name;
  }
  one("#export")?.addEventListener("click", () => {
    const cell = (text) => `"${String(text).replaceAll('"', '""')}"`;
    const named = all(".dir[data-index]").map((node) => node.dataset).filter(({ name, comment }) => name || comment);
    const rows = named.sort((a, b) => a.index - b.index).map(({ index, name, comment }) => [set, index, name, comment].map(cell).join());
    const file = new Blob([["directions,direction,name,comment", ...rows, ""].join("\n")], { type: "text/csv" });
    const link = document.createElement("a");
    Object.assign(link, { href: URL.createObjectURL(file), download: "names.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  const items = all("[data-index]").map((node) => {
    const { index, label, category = "", iou, share, influence, again } = node.dataset;
    const numbers = { index, iou, share, influence, again };
    for (const key of Object.keys(numbers)) numbers[key] = number(numbers[key]);
    return { node, label, category, ...numbers, good: "good" in node.dataset, text: `${label} ${category}`.toLowerCase() };
  });
  const list = items[0]?.node.parentElement;
  const language = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const falling = (key) => (a, b) => (b[key] || 0) - (a[key] || 0) || a.index - b.index;
  const orders = {
    iou: (a, b) => b.good - a.good || falling("iou")(a, b),
    index: (a, b) => a.index - b.index,
    label: (a, b) => language.compare(a.label, b.label) || orders.iou(a, b),
    influence: falling("influence"),
    share: falling("share"),
    again: (a, b) => (b.again || 0) - (a.again || 0) || orders.iou(a, b),
  };

  // what has been typed and pressed is in the address: #q=snow&sort=share
  const fields = all("input, select", form);
  const usual = (field) => field.options?.[0].value ?? "";
  const view = () => {
    const found = fields.filter((field) => field.value !== usual(field)).map((field) => [field.name, field.value]);
    return [...found, ...chips.filter(pressed).map((chip) => [chip.name, chip.value])];
  };
  function restore() {
    if (location.hash && !location.hash.includes("=")) return; // a place on the page
    const given = new URLSearchParams(location.hash.slice(1));
    if (given.get("class")) fill();
    for (const field of fields) {
      field.value = given.get(field.name) || usual(field);
      if (field.selectedIndex === -1) field.value = usual(field); // a view of another report
    }
    for (const chip of chips) press(chip, given.getAll(chip.name).includes(chip.value));
  }

  let order = sort?.value;
  function show() {
    if (order !== sort?.value) {
      order = sort.value;
      list.append(...items.sort(orders[order]).map((item) => item.node));
    }
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const named = (item) => words.every((word) => (/^#\d+$/.test(word) ? item.index === Number(word.slice(1)) : item.text.includes(word)));
    const limits = ["iou", "again"].map((key) => [key, number(form.elements[key]?.value)]);
    const wanted = klass?.value && Number(klass.value);
    const ends = { both: ["up", "down"] }[way?.value] ?? [way?.value];
    const pushes = (item) => !klass?.value || ends.some((end) => moved()[end][item.index].includes(wanted));
    const good = chips.some((chip) => chip.name === "good" && pressed(chip));
    const categories = chips.filter((chip) => chip.name === "cat" && pressed(chip)).map((chip) => chip.value);
    const tally = new Map();
    let shown = 0;
    for (const item of items) {
      const found = named(item) && (!good || item.good) && !limits.some(([key, least]) => item[key] < least) && pushes(item);
      if (found) tally.set(item.category, (tally.get(item.category) ?? 0) + 1);
      item.node.hidden = !found || (categories.length > 0 && !categories.includes(item.category));
      shown += !item.node.hidden;
    }
    for (const chip of chips) if (chip.name === "cat") chip.lastElementChild.textContent = tally.get(chip.value) ?? 0;
    if (way) way.disabled = !klass.value;
    const [single, several] = form.dataset.items.split(" ");
    one("#count").textContent = `${shown} of ${items.length} ${items.length === 1 ? single : several}`;
    one(".none").hidden = shown > 0;
    if (reset) reset.hidden = !view().length;
  }
  function changed() {
    show();
    const found = view();
    const hash = found.length ? `#${new URLSearchParams(found)}` : location.pathname + location.search;
    try {
      history.replaceState(null, "", hash);
    } catch {
      location.replace(found.length ? hash : "#");
    }
  }
  let waiting = 0;
  form.addEventListener("input", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(changed);
  });
  form.addEventListener("change", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      press(chip, !pressed(chip));
      changed();
    });
  }
  for (const button of all("#reset, .reset")) {
    button.addEventListener("click", () => {
      for (const field of fields) field.value = usual(field);
      for (const chip of chips) press(chip, false);
      changed();
      find.focus();
    });
  }
  find.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !find.value) return;
    find.value = "";
    changed();
  });
  const seek = one("#seek");
  seek.hidden = form.hidden = false;
  seek.addEventListener("click", (event) => {
    event.preventDefault();
    find.focus();
  });
  const follow = () => {
    restore();
    show();
    if (view().length) one("#directions")?.scrollIntoView();
  };
  addEventListener("hashchange", follow);
  follow();
})();
