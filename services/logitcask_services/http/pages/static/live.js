"use strict";
// Live figures by server-sent events: the server formats them, so that page and stream say the same.
(() => {
  // The buttons of a job whose state has changed.
  const renew = (job) => {
    const controls = document.querySelector(`#controls[data-job="${CSS.escape(job)}"]`);
    if (!controls || typeof htmx === "undefined") return;
    htmx.ajax("GET", `/ui/jobs/${encodeURIComponent(job)}/controls`, { target: controls, swap: "outerHTML" });
  };

  // Whoever pressed a button that is gone stays at the buttons.
  let pressed = false;
  document.addEventListener("htmx:beforeRequest", (event) => {
    pressed = event.target.closest("#controls") !== null;
  });
  document.addEventListener("htmx:afterSettle", () => {
    const first = document.querySelector("#controls button");
    if (pressed && first && document.activeElement === document.body) first.focus();
  });

  const update = (live, { fields, progress, shape }) => {
    if (shape !== live.dataset.shape) {
      // A job is new, or has gone from the page: the server draws that part again.
      if (typeof htmx !== "undefined") htmx.ajax("GET", location.pathname, { target: live, select: "#live", swap: "outerHTML" });
      return;
    }
    for (const [name, text] of Object.entries(fields)) {
      const cell = document.querySelector(`[data-field="${CSS.escape(name)}"]`);
      if (cell && cell.textContent !== text) {
        cell.textContent = text;
        if (name.endsWith(".status")) renew(name.slice(0, -".status".length));
      }
      if (cell && name.endsWith(".status")) cell.className = `state ${text}`;
    }
    for (const [name, share] of Object.entries(progress)) {
      const bar = document.querySelector(`progress[data-progress="${CSS.escape(name)}"]`);
      if (bar) bar.value = share;
    }
  };

  const follow = () => {
    const live = document.getElementById("live");
    if (!live) return;
    const events = new EventSource(live.dataset.events);
    events.addEventListener("figures", (event) => {
      const now = document.getElementById("live");
      if (now) update(now, JSON.parse(event.data));
    });
    addEventListener("pagehide", () => events.close());
  };

  // A run that is going on is drawn anew, but not while somebody reads its numbers.
  const renewRun = () => {
    const run = document.querySelector("#run[data-running]");
    if (!run || document.hidden || run.querySelector("details[open]") || typeof htmx === "undefined") return;
    htmx.ajax("GET", location.pathname, { target: run, select: "#run", swap: "outerHTML" });
  };

  document.addEventListener("DOMContentLoaded", () => {
    follow();
    if (document.querySelector("#run[data-running]")) setInterval(renewRun, 15000);
  });
})();
