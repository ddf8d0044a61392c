// What the page does by itself: local times, the pause button, a word when the server does not answer.
"use strict";

(() => {
  const live = document.getElementById("live");
  const connection = document.getElementById("connection");
  const pause = document.getElementById("pause");
  const room = document.getElementById("accuracy-chart"); // null on the page of one device
  const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

  // The server writes UTC; this rewrites it in the viewer's zone, with the day where it is not today.
  function localTimes() {
    const today = day.format(new Date());
    for (const element of live.querySelectorAll("time[datetime]")) {
      const at = new Date(element.dateTime);
      const text = day.format(at) === today ? time.format(at) : `${day.format(at)} ${time.format(at)}`;
      if (element.textContent !== text) element.textContent = text;
    }
  }

  // Observers run before the next paint, so a refresh is never seen half done.
  const watch = { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["data-chart"] };
  const observer = new MutationObserver((changes) => {
    localTimes();
    if (changes.some((change) => change.type === "attributes")) shoalChart.update();
    observer.takeRecords(); // our own changes
  });

  function say(text, paused = false) {
    connection.textContent = text;
    connection.classList.toggle("paused", paused);
    live.classList.toggle("stale", text !== "" && !paused);
  }

  const paused = () => pause.getAttribute("aria-pressed") === "true";

  document.addEventListener("htmx:before:request", (event) => {
    if (paused() || document.hidden) event.preventDefault();
  });
  document.addEventListener("htmx:error", () => say("The server does not answer; trying again"));
  document.addEventListener("htmx:response:error", (event) => {
    const status = event.detail.ctx.response.status;
    if (status === 401) location.assign("/login");
    else say(`The server answers with an error (${status}); trying again`);
  });
  document.addEventListener("htmx:after:swap", () => say(""));
  document.addEventListener("visibilitychange", () => document.hidden || htmx.trigger(live, "refresh"));

  pause.hidden = false;
  pause.addEventListener("click", () => {
    pause.setAttribute("aria-pressed", String(!paused()));
    say(paused() ? "Paused" : "", paused());
    if (!paused()) htmx.trigger(live, "refresh");
  });

  localTimes();
  observer.observe(live, watch);
  if (room === null) return;
  shoalChart.update();
  new ResizeObserver(() => shoalChart.resize()).observe(room);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shoalChart.update(true));
})();
