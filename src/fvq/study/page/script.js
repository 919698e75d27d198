"use strict";
(() => {
  // --- tables: a heading sorts ascending, then descending, then restores the printed order -------------------------

  const collator = new Intl.Collator("en", { numeric: true });
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

  function sorted(lines, column, order) {
    const cells = new Map(lines.map((line) => [line, line.cells[column].dataset]));
    const numeric = lines.some((line) => "value" in cells.get(line));
    const key = (line) => (numeric ? cells.get(line).value : cells.get(line).text);
    const compare = numeric ? (a, b) => a - b : collator.compare;
    const sign = order === "ascending" ? 1 : -1;
    const filled = lines.filter((line) => key(line) !== undefined);
    const empty = lines.filter((line) => key(line) === undefined);
    return [...filled.sort((a, b) => sign * compare(key(a), key(b))), ...empty];
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    const printed = [...body.rows];
    const across = printed.filter((line) => line.classList.contains("across"));
    const lines = printed.filter((line) => !line.classList.contains("across"));
    const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const order = NEXT[heading.getAttribute("aria-sort") ?? "none"];
        for (const other of headings) other.removeAttribute("aria-sort");
        if (order !== "none") heading.setAttribute("aria-sort", order);
        body.append(...(order === "none" ? printed : sorted(lines, column, order)));
        for (const line of across) line.hidden = order !== "none";
      });
    });
  }

  document.querySelectorAll("table.sortable").forEach(makeSortable);

  // --- plots: the value of the nearest point, by pointer, touch or arrow keys --------------------------------------

  const REACH = 24;
  const MARGIN = 40;
  const tip = document.getElementById("tip");
  // What the keyboard asks for is said aloud; it is there from the start, as what appears later may not be heard.
  const said = document.getElementById("said");
  let shown = null;

  function onScreen(svg, point) {
    return new DOMPoint(point.x, point.y).matrixTransform(svg.getScreenCTM());
  }

  function nearest(plot, x, y) {
    const matrix = plot.svg.getScreenCTM();
    let found = null;
    let least = REACH;
    for (const point of plot.points) {
      const at = new DOMPoint(point.x, point.y).matrixTransform(matrix);
      const distance = Math.hypot(at.x - x, at.y - y);
      if (distance <= least) [found, least] = [point, distance];
    }
    return found;
  }

  function place() {
    const { plot, point } = shown;
    const at = onScreen(plot.svg, point);
    const box = plot.element.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const height = document.documentElement.clientHeight;
    tip.hidden = at.x < box.left - 1 || at.x > box.right + 1 || at.y < 0 || at.y > height;
    if (tip.hidden) return;
    const left = Math.min(Math.max(at.x - tip.offsetWidth / 2, 8), width - tip.offsetWidth - 8);
    const above = at.y - tip.offsetHeight - 14;
    const top = above >= 8 ? above : Math.min(at.y + 14, height - tip.offsetHeight - 8);
    tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  }

  function show(plot, point) {
    if (shown && shown.plot !== plot) hide();
    const matrix = plot.svg.getScreenCTM();
    plot.marker.setAttribute("cx", point.x);
    plot.marker.setAttribute("cy", point.y);
    plot.marker.setAttribute("r", 5 / matrix.a);
    plot.svg.append(plot.marker);
    tip.textContent = point.text;
    tip.style.borderLeftColor = point.colour;
    shown = { plot, point };
    place();
  }

  function hide() {
    if (!shown) return;
    shown.plot.marker.remove();
    tip.hidden = true;
    said.textContent = "";
    shown = null;
  }

  // Left and right go along a line, up and down to the other lines; a line is the points of one first line of text.
  function step(plot, key) {
    const at = shown && shown.plot === plot ? shown.point : null;
    if (!at) return plot.last;
    const line = plot.lines.find((points) => points.includes(at));
    const position = line.indexOf(at);
    if (key === "ArrowLeft") return line[Math.max(position - 1, 0)];
    if (key === "ArrowRight") return line[Math.min(position + 1, line.length - 1)];
    if (key === "Home") return line[0];
    if (key === "End") return line[line.length - 1];
    const turn = key === "ArrowDown" ? 1 : plot.lines.length - 1;
    const other = plot.lines[(plot.lines.indexOf(line) + turn) % plot.lines.length];
    const away = (point) => Math.hypot(point.x - at.x, point.y - at.y);
    return other.reduce((best, point) => (away(point) < away(best) ? point : best));
  }

  // Without smoothness, so that the place on the screen is the last one.
  function bringIntoView(plot, point) {
    const box = plot.element.getBoundingClientRect();
    const at = onScreen(plot.svg, point);
    const height = document.documentElement.clientHeight;
    if (at.x < box.left || at.x > box.right) plot.element.scrollLeft += at.x - (box.left + box.right) / 2;
    if (at.y < MARGIN || at.y > height - MARGIN) window.scrollBy({ top: at.y - height / 2, behavior: "instant" });
  }

  function makeReadable(element) {
    const data = element.parentElement.querySelector("script.points");
    if (!data) return;
    const svg = element.querySelector("svg");
    const points = JSON.parse(data.textContent).map(([x, y, text, colour]) => ({ x, y, text, colour }));
    const marker = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    marker.setAttribute("class", "marker");
    const groups = new Map();
    for (const point of points) {
      const name = point.text.split("\n")[0];
      groups.set(name, [...(groups.get(name) ?? []), point]);
    }
    const plot = { element, svg, points, marker, lines: [...groups.values()], last: points[0] };
    const follow = (event) => {
      const point = nearest(plot, event.clientX, event.clientY);
      if (point) show(plot, point);
      else hide();
    };
    element.addEventListener("pointermove", follow);
    element.addEventListener("pointerdown", follow);
    element.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") hide();
    });
    element.addEventListener("blur", hide);
    element.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "Escape") hide();
      if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
      event.preventDefault();
      const point = step(plot, event.key);
      bringIntoView(plot, point);
      show(plot, point);
      plot.last = point;
      said.textContent = point.text;
    });
  }

  document.querySelectorAll(".plot").forEach(makeReadable);
  document.addEventListener("pointerdown", (event) => {
    if (shown && !shown.plot.element.contains(event.target)) hide();
  });
  for (const change of ["scroll", "resize"]) {
    window.addEventListener(change, () => shown && place(), { capture: true, passive: true });
  }

  // --- commands: copied without a network, and without a clipboard that asks --------------------------------------

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const focused = document.activeElement;
      const area = document.createElement("textarea");
      area.value = text;
      area.style.position = "fixed";
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      focused.focus({ preventScroll: true });
      return done;
    }
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const done = await copy(button.previousElementSibling.textContent);
      button.textContent = said.textContent = done ? "copied" : "not copied";
      setTimeout(() => (button.textContent = "copy"), 1500);
    });
  }

  // --- links into what is folded -----------------------------------------------------------------------------------

  function named(fragment) {
    try {
      return document.getElementById(decodeURIComponent(fragment));
    } catch {
      return null; // "%" alone is no code of a character
    }
  }

  function unfold() {
    const target = named(location.hash.slice(1));
    if (!target) return;
    for (let at = target.parentElement; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target.scrollIntoView();
  }

  window.addEventListener("hashchange", unfold);
  unfold();
})();
