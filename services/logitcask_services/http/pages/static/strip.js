"use strict";
// The token strip: one stop of the tab key, arrow keys from token to token, and what the teacher thought before each.
(() => {
  const SHOWN_ENTRIES = 20;

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  const percent = (value) => (value === null ? "–" : value > 0 && value < 0.0001 ? "<0.01 %" : `${(100 * value).toFixed(2)} %`);
  const figure = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));
  const shown = (text) => text === "" ? "⋯" : JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"').replace(/[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);

  const bar = (share) => {
    const filled = element("span");
    filled.style.width = `${Math.min(100, Math.max(0, 100 * share))}%`;
    return element("td", { class: "amount", "aria-hidden": "true" }, filled);
  };

  const line = (kind, name, share, value) =>
    element("tr", { class: kind }, element("td", {}, element("code", {}, name)), bar(share), element("td", { class: "n" }, value));

  const table = (caption, kind, rows) => element("table", { class: kind }, element("caption", {}, caption), element("tbody", {}, ...rows));

  const facts = (token) => {
    const pairs = [["probability", percent(token.probability)], ["entropy", figure(token.entropy)], ["tail mass", percent(token.tail_mass)]];
    if (token.kl !== null) pairs.push(["KL", figure(token.kl, 3)]);
    return element("dl", { class: "figures" }, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  };

  const describe = (panel, token) => {
    const close = element("button", { type: "button", class: "close" }, "Close");
    close.addEventListener("click", () => { panel.hidden = true; document.body.classList.remove("inspecting"); });
    const title = element("h2", {}, `Token ${token.at} `, element("code", {}, shown(token.text)));
    const parts = [close, title, element("p", { class: "soft" }, `id ${token.id}${token.answer ? ", part of an answer" : ""}`)];
    if (token.entropy === null) {
      parts.push(element("p", {}, token.at === 0 ? "Nothing stands before the first token of a document." : "What the teacher thought before it was not recorded."));
    } else {
      const most = Math.max(token.tail_mass, ...token.head.map((entry) => entry.probability), 1e-12);
      const rows = token.head.slice(0, SHOWN_ENTRIES).map((entry) => line(entry.id === token.id ? "came" : "", shown(entry.text), entry.probability / most, percent(entry.probability)));
      const came = token.head.findIndex((entry) => entry.id === token.id);
      if (came >= SHOWN_ENTRIES) rows.push(line("came", shown(token.head[came].text), token.head[came].probability / most, percent(token.head[came].probability)));
      rows.push(line("tail", "tail", token.tail_mass / most, percent(token.tail_mass)));
      const more = token.head.length > SHOWN_ENTRIES ? `, ${SHOWN_ENTRIES} of ${token.head.length} shown` : "";
      parts.push(facts(token), table(`Head${more}`, "head", rows));
      const draws = token.draws.reduce((sum, draw) => sum + draw.count, 0);
      if (draws) {
        const each = token.tail_mass / draws;
        const top = Math.max(...token.draws.map((draw) => draw.count));
        parts.push(table(`Draws from the tail: ${draws}, each for ${percent(each)}`, "draws", token.draws.map((draw) => line("", shown(draw.text), draw.count / top, `${draw.count} ×`))));
      }
    }
    panel.replaceChildren(...parts);
    panel.hidden = false;
    document.body.classList.toggle("inspecting", !panel.classList.contains("below"));
  };

  const neighbourLine = (options, from, down) => {
    const { left, top, height } = from.getClientRects()[0];
    const candidates = options.map((option) => ({ option, box: option.getClientRects()[0] })).filter(({ box }) => box && (down ? box.top > top + height / 2 : box.top < top - height / 2));
    if (!candidates.length) return from;
    const row = down ? Math.min(...candidates.map(({ box }) => box.top)) : Math.max(...candidates.map(({ box }) => box.top));
    return candidates.filter(({ box }) => Math.abs(box.top - row) < height / 2).reduce((best, next) => (Math.abs(next.box.left - left) < Math.abs(best.box.left - left) ? next : best)).option;
  };

  const start = (root) => {
    const strips = [...root.querySelectorAll(".strip")];
    const panels = [...root.querySelectorAll(".inspector")];
    const windows = strips.map((strip) => fetch(strip.dataset.source).then((answer) => {
      if (!answer.ok) throw new Error(`${strip.dataset.source}: ${answer.status}`);
      return answer.json();
    }));
    const options = strips.map((strip) => [...strip.querySelectorAll(".tok")]);
    let wanted = -1;

    const select = (place) => {
      wanted = place;
      strips.forEach((strip, side) => {
        for (const other of strip.querySelectorAll("[aria-selected=true], [tabindex='0']")) {
          other.setAttribute("aria-selected", "false");
          other.tabIndex = -1;
        }
        const option = options[side][place];
        if (!option) return;
        option.setAttribute("aria-selected", "true");
        option.tabIndex = 0;
        windows[side].then((content) => {
          if (wanted !== place) return;
          describe(panels[side], content.rows[place]);
          // The panel of a small screen lies over the text.
          if (document.activeElement === option) option.scrollIntoView({ block: "nearest" });
        }).catch((error) => panels[side].replaceChildren(String(error)));
      });
    };

    strips.forEach((strip, side) => {
      const placeOf = (event) => options[side].indexOf(event.target.closest(".tok"));
      strip.addEventListener("focusin", (event) => placeOf(event) >= 0 && select(placeOf(event)));
      strip.addEventListener("pointerover", (event) => event.pointerType === "mouse" && placeOf(event) >= 0 && select(placeOf(event)));
      strip.addEventListener("click", (event) => placeOf(event) >= 0 && options[side][placeOf(event)].focus());
      strip.addEventListener("keydown", (event) => {
        const place = placeOf(event);
        if (place < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
        const all = options[side];
        const next = {
          ArrowRight: () => all[place + 1], ArrowLeft: () => all[place - 1], Home: () => all[0], End: () => all[all.length - 1],
          ArrowDown: () => neighbourLine(all, all[place], true), ArrowUp: () => neighbourLine(all, all[place], false),
        }[event.key]?.();
        if (!next) return;
        event.preventDefault();
        next.focus();
      });
    });

    for (const choice of root.querySelectorAll("input[name=measure]")) {
      choice.addEventListener("change", () => {
        root.dataset.measure = choice.value;
        const address = new URL(location.href);
        address.searchParams.set("measure", choice.value);
        history.replaceState(null, "", address);
        for (const link of root.querySelectorAll(".pager a")) {
          const target = new URL(link.href);
          target.searchParams.set("measure", choice.value);
          link.href = target;
        }
      });
    }
  };

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".measured").forEach(start));
})();
