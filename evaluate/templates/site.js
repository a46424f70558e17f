// The pages read well without this: it adds search, filters, sorting, a view that can be sent as an address, and keys.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const find = one("#find");
  const count = one("#count");
  const words = () => find.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = (item, list) =>
    list.every((word) => (/^#\d+$/.test(word) ? item.index === Number(word.slice(1)) : item.text.includes(word)));
  const number = (text) => (text ? Number(text) : NaN);
  const pressed = (button) => button?.getAttribute("aria-pressed") === "true";
  const press = (button, on) => button?.setAttribute("aria-pressed", String(on));

  // "/" goes to the search, Escape clears it; on the page of a direction or class the arrows turn the page
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") for (const term of all(".term:hover, .term:focus")) term.classList.add("dismissed");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest?.("input, select, textarea, .scroll");
    if (event.key === "/" && find && event.target !== find && !event.target.closest?.("input, textarea")) {
      event.preventDefault();
      find.focus();
      find.select();
    } else if (!typing && !event.shiftKey && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      const link = one(`link[rel="${event.key === "ArrowLeft" ? "prev" : "next"}"]`);
      if (link) location.href = link.href;
    }
  });

  // Escape closes a definition until one points or steps on it again
  for (const left of ["pointerout", "focusout"]) {
    addEventListener(left, (event) => event.target.closest?.(".term")?.classList.remove("dismissed"));
  }

  // the map is one stop of the Tab key: arrows go to the nearest point that way
  const map = one(".map");
  const points = map ? all(".point", map) : [];
  const step = (to) => {
    for (const point of points) point.setAttribute("tabindex", point === to ? "0" : "-1");
  };
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  map?.addEventListener("focusin", (event) => step(event.target.closest(".point")));
  map?.addEventListener("keydown", (event) => {
    const way = ways[event.key], from = event.target.closest(".point");
    if (!way || !from || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    event.preventDefault();
    const centre = (point) => {
      const box = point.firstElementChild.nextElementSibling.getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2];
    };
    const [x, y] = centre(from);
    let nearest = null, least = Infinity;
    for (const point of points) {
      const [px, py] = centre(point);
      const along = (px - x) * way[0] + (py - y) * way[1];
      const aside = Math.abs((px - x) * way[1]) + Math.abs((py - y) * way[0]);
      if (along > 0.5 && along + 2 * aside < least) [nearest, least] = [point, along + 2 * aside];
    }
    nearest?.focus();
  });
  step(points[0]);

  // what has been typed and pressed is in the address: #q=snow&sort=share
  const state = (fields) => {
    const read = () => {
      const given = new URLSearchParams(location.hash.slice(1));
      for (const [key, field] of Object.entries(fields)) field.set(given.get(key) ?? "");
    };
    const write = () => {
      const kept = new URLSearchParams();
      for (const [key, field] of Object.entries(fields)) if (field.get()) kept.set(key, field.get());
      const hash = kept.size ? `#${kept}` : location.pathname + location.search;
      try {
        history.replaceState(null, "", hash);
      } catch {
        location.replace(kept.size ? hash : "#");
      }
    };
    const ours = () => !location.hash || location.hash.includes("=");
    return { read, write, ours, any: () => Object.values(fields).some((field) => field.get()) };
  };
  const typed = (field, usual = "", before = () => {}) => ({
    get: () => (field && field.value !== usual ? field.value : ""),
    set: (value) => {
      if (!field) return;
      if (value) before();
      field.value = value || usual;
      if (field.selectedIndex === -1) field.value = usual; // a view of another report
    },
  });
  const later = (action) => {
    let waiting = 0;
    return () => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(action);
    };
  };

  function directions(form) {
    const list = one(".dirs"), none = one(".none"), reset = one("#reset");
    const sort = one("#sort"), least = one("#least"), again = one("#again"), klass = one("#class"), way = one("#way"), only = one("#only");
    const chips = all("button[data-category]", form);
    let read = null; // classes, and which of them each direction moves: as soon as somebody asks for one
    const moved = () => (read ??= JSON.parse(one("#moved").textContent));
    const fill = () => {
      if (klass.length === 1) klass.append(...moved().classes.map((name, k) => new Option(name, k)));
    };
    for (const asked of ["pointerenter", "focus"]) klass?.addEventListener(asked, fill);
    const items = all(".dir").map((node) => ({
      node,
      index: Number(node.dataset.index),
      iou: number(node.dataset.iou),
      share: number(node.dataset.share),
      influence: number(node.dataset.influence),
      again: number(node.dataset.again),
      label: node.dataset.label,
      category: node.dataset.category,
      good: "good" in node.dataset,
      text: `${node.dataset.label} ${node.dataset.category}`.toLowerCase(),
    }));
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
    const usual = sort.options[0].value; // the order the page was written in
    let order = usual;
    const view = state({
      q: typed(find),
      sort: typed(sort, usual),
      iou: typed(least),
      again: typed(again),
      class: typed(klass, "", fill),
      way: typed(way, "both"),
      cat: {
        get: () => chips.filter(pressed).map((chip) => chip.dataset.category).join("|"),
        set: (value) => chips.forEach((chip) => press(chip, value.split("|").includes(chip.dataset.category))),
      },
      good: { get: () => (pressed(only) ? "1" : ""), set: (value) => press(only, value === "1") },
    });
    const pushes = (item) => {
      if (!klass?.value) return true;
      const wanted = Number(klass.value);
      const up = moved().up[item.index].includes(wanted), down = moved().down[item.index].includes(wanted);
      return way.value === "up" ? up : way.value === "down" ? down : up || down;
    };

    function show() {
      if (order !== sort.value) {
        items.sort(orders[sort.value]);
        list.append(...items.map((item) => item.node));
        order = sort.value;
      }
      const searched = words();
      const limit = number(least?.value), often = number(again?.value);
      const chosen = new Set(chips.filter(pressed).map((chip) => chip.dataset.category));
      const tally = new Map();
      let shown = 0;
      for (const item of items) {
        const kept = found(item, searched) && (!pressed(only) || item.good) && !(item.iou < limit) && !(item.again < often) && pushes(item);
        if (kept) tally.set(item.category, (tally.get(item.category) ?? 0) + 1);
        item.node.hidden = !kept || (chosen.size > 0 && !chosen.has(item.category));
        shown += !item.node.hidden;
      }
      for (const chip of chips) chip.lastElementChild.textContent = tally.get(chip.dataset.category) ?? 0;
      if (way) way.disabled = !klass.value;
      count.textContent = `${shown} of ${items.length} direction${items.length === 1 ? "" : "s"}`;
      none.hidden = shown > 0;
      reset.hidden = !view.any();
    }
    const changed = () => {
      show();
      view.write();
    };

    find.addEventListener("input", later(changed));
    for (const field of [least, again]) field?.addEventListener("input", later(changed));
    for (const field of [sort, klass, way]) field?.addEventListener("change", changed);
    for (const chip of [...chips, only]) {
      chip?.addEventListener("click", () => {
        press(chip, !pressed(chip));
        changed();
      });
    }
    for (const button of [reset, ...all(".reset")]) {
      button.addEventListener("click", () => {
        for (const field of [find, least, again, klass]) if (field) field.value = "";
        for (const chip of [...chips, only]) press(chip, false);
        sort.value = usual;
        if (way) way.value = "both";
        changed();
        find.focus();
      });
    }
    find.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && find.value) {
        find.value = "";
        changed();
      }
    });
    const follow = () => {
      if (view.ours()) view.read();
      show();
    };
    addEventListener("hashchange", follow);
    form.hidden = false;
    follow();
    if (view.any()) one("#directions").scrollIntoView();
  }

  function classes(form) {
    const rows = all(".classes tbody tr").map((node) => ({
      node,
      index: Number(node.dataset.index),
      text: node.dataset.label.toLowerCase(),
    }));
    const none = one(".none");
    const view = state({ q: typed(find) });
    const show = () => {
      const searched = words();
      let shown = 0;
      for (const row of rows) shown += !(row.node.hidden = !found(row, searched));
      count.textContent = `${shown} of ${rows.length} class${rows.length === 1 ? "" : "es"}`;
      none.hidden = shown > 0;
    };
    const changed = () => {
      show();
      view.write();
    };
    find.addEventListener("input", later(changed));
    form.addEventListener("submit", (event) => event.preventDefault());
    one(".reset").addEventListener("click", () => {
      find.value = "";
      changed();
      find.focus();
    });
    find.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        find.value = "";
        changed();
      }
    });
    addEventListener("hashchange", () => {
      view.read();
      show();
    });
    form.hidden = false;
    view.read();
    show();
  }

  const seek = one("#seek");
  if (seek && find) {
    seek.hidden = false;
    seek.addEventListener("click", (event) => {
      event.preventDefault();
      find.focus();
    });
  }
  const form = one("form.find"), lookup = one("form.lookup");
  form?.addEventListener("submit", (event) => event.preventDefault());
  if (form) directions(form);
  if (lookup) classes(lookup);
})();
