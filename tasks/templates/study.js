"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = data.rows;
  const inside = JSON.parse(document.getElementById("videos").textContent); // name -> base64; empty: files beside the page
  const fields = ["choice", "realism", "motion", "identity"];
  const place = `video-comparison/${data.study}/${data.rater}`; // pages opened from disk may share one store
  const $ = (id) => document.getElementById(id);
  const a = $("a"), b = $("b"), driving = $("driving"), subject = $("subject");
  const videos = [a, b, driving, subject];
  const speeds = [1, 0.5, 0.25];
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  let at = 0; // row that is shown
  let shown = "start";
  let answers = {}; // pair -> {choice, realism, motion, identity, seconds, comment}
  let stored = true; // whether this browser keeps anything
  let exported = true; // nothing has changed since the last export
  let playing = false, looping = true, speed = 0;
  let seen = new Set(); // which of a, b have been at their end
  let broken = false;
  let since = null; // when the clock of this pair was started

  // --- answers -------------------------------------------------------------------------------------------------

  const empty = () => ({ choice: "", realism: "", motion: "", identity: "", seconds: 0, comment: "" });
  const answer = () => (answers[rows[at].pair] ??= empty());
  const isDone = (row) => Boolean(answers[row.pair]?.choice);
  const done = () => rows.filter(isDone).length;

  function read() { // what this browser kept; whatever does not fit is left out
    let kept = null;
    try { kept = JSON.parse(localStorage.getItem(place)); } catch { kept = null; }
    answers = {};
    at = 0;
    if (!kept || typeof kept.answers !== "object" || kept.answers === null) return;
    for (const row of rows) {
      const one = kept.answers[row.pair];
      if (!one || typeof one !== "object") continue;
      const clean = empty();
      for (const field of fields) if (one[field] === "a" || one[field] === "b") clean[field] = one[field];
      if (Number.isFinite(one.seconds) && one.seconds > 0) clean.seconds = one.seconds;
      if (typeof one.comment === "string") clean.comment = one.comment.slice(0, 500);
      answers[row.pair] = clean;
    }
    if (Number.isInteger(kept.at) && kept.at >= 0 && kept.at < rows.length) at = kept.at;
  }

  function write() {
    try {
      localStorage.setItem(place, JSON.stringify({ at, answers }));
      stored = localStorage.getItem(place) !== null;
    } catch { stored = false; }
    if (!stored) tell("This browser does not keep the answers when the page is closed: export them before you close it.");
  }

  function changed() {
    exported = false;
    clock(true);
    write();
    paint();
  }

  function clock(run) { // seconds count only while a pair is in sight
    const now = performance.now();
    if (since !== null) {
      const one = answer();
      one.seconds = Math.round((one.seconds + (now - since) / 1000) * 10) / 10;
    }
    since = run && shown === "rate" && !document.hidden ? now : null;
  }

  // --- videos --------------------------------------------------------------------------------------------------

  function play() {
    playing = true;
    if (a.ended && b.ended) restart();
    for (const video of videos) if (!video.ended) video.play().catch(() => {});
    paint();
  }

  function pause() {
    playing = false;
    videos.forEach((video) => video.pause());
    for (const video of [b, driving]) {
      if (video.readyState >= 1 && a.readyState >= 1) video.currentTime = Math.min(a.currentTime, video.duration);
    }
    paint();
  }

  function restart() {
    for (const video of videos) {
      video.currentTime = 0;
      if (playing) video.play().catch(() => {});
    }
  }

  function follow() { // B and the driving video keep A's time
    for (const video of [b, driving]) {
      if (video.readyState >= 2 && !video.ended && !video.seeking && !a.ended && Math.abs(video.currentTime - a.currentTime) > 0.05) {
        video.currentTime = a.currentTime;
      }
    }
  }

  function tick() {
    if (playing && shown === "rate") {
      follow();
      if (a.ended && b.ended) {
        if (looping) restart();
        else pause();
      }
    }
    requestAnimationFrame(tick);
  }

  function address(name) {
    if (!inside[name]) return `videos/${name}`;
    const bytes = Uint8Array.from(atob(inside[name]), (letter) => letter.charCodeAt(0));
    return URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  }

  function load() {
    playing = false;
    broken = false;
    seen = new Set(isDone(rows[at]) ? ["a", "b"] : []);
    const row = rows[at];
    const names = { a: row.video_a, b: row.video_b, driving: row.driving, subject: row.subject };
    for (const video of videos) {
      if (video.src.startsWith("blob:")) URL.revokeObjectURL(video.src);
      video.src = address(names[video.id]);
      video.load();
      video.defaultPlaybackRate = video.playbackRate = speeds[speed];
    }
    if (!calm.matches) play();
  }

  for (const video of videos) {
    video.addEventListener("ended", () => {
      if (video === subject && playing) { video.currentTime = 0; video.play().catch(() => {}); }
      if (video === a || video === b) { seen.add(video.id); paint(); }
    });
    video.addEventListener("error", () => {
      if (!video.getAttribute("src")) return;
      broken = true;
      tell("A video does not play here. Unpack the whole folder and open the page in a current browser. You may skip the pair.");
      paint();
    });
  }

  // --- the page ------------------------------------------------------------------------------------------------

  function tell(text) {
    $("notice").textContent = text;
    $("notice").hidden = !text;
  }

  function choose(field, value) {
    const one = answer();
    if (field === "choice") {
      if (seen.size < 2) return;
      one.choice = value;
    } else {
      one[field] = one[field] === value ? "" : value;
    }
    changed();
  }

  function show(name) {
    clock(false);
    if (name !== "rate") pause();
    shown = name;
    for (const id of ["start", "rate", "end"]) $(id).hidden = id !== name;
    if (name === "rate") {
      tell("");
      $("comment").value = answers[rows[at].pair]?.comment ?? "";
      load();
    } else {
      $(`${name}-title`).focus();
    }
    clock(true);
    write();
    paint();
    scrollTo(0, 0);
  }

  function next() {
    if (!isDone(rows[at]) && !broken) return;
    clock(false); // what was counted belongs to the pair that is left
    if (at + 1 < rows.length) { at += 1; show("rate"); } else show("end");
  }

  function back() {
    if (at === 0) return;
    clock(false);
    at -= 1;
    show("rate");
  }

  function paint() {
    $("progress").value = done();
    $("count").textContent = shown === "rate" ? `Pair ${at + 1} of ${rows.length}` : `${done()} of ${rows.length} answered`;
    if (!rows.length) return;
    const one = answers[rows[at].pair] ?? empty();
    for (const group of document.querySelectorAll("[data-field]")) {
      for (const button of group.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(one[group.dataset.field] === button.dataset.value));
        if (group.dataset.field === "choice") button.disabled = seen.size < 2;
      }
    }
    const status = seen.size < 2 ? "Watch both videos to the end." : one.choice ? `You chose ${one.choice.toUpperCase()}.` : "Choose A or B.";
    const text = `Pair ${at + 1} of ${rows.length}. ${status}`;
    if ($("status").textContent !== text) $("status").textContent = text;
    $("play").textContent = playing ? "Pause" : "Play";
    $("speed").textContent = `Speed ${speeds[speed]}×`;
    $("loop").textContent = looping ? "Loop on" : "Loop off";
    $("back").disabled = at === 0;
    $("next").disabled = !one.choice && !broken;
    $("next").textContent = broken && !one.choice ? "Skip" : at + 1 < rows.length ? "Next" : "Finish";
    $("resume").hidden = $("forget").hidden = done() === 0;
    $("resume").textContent = `${done()} of ${rows.length} pairs were answered in this browser. You go on where you stopped.`;
    $("begin").textContent = done() ? "Go on" : "Begin";
    const open = rows.length - done();
    $("summary").textContent = `${done()} of ${rows.length} pairs are answered.` + (open ? "" : " Thank you!");
    $("open").hidden = open === 0;
    $("send").hidden = !location.protocol.startsWith("http");
  }

  // --- the CSV -------------------------------------------------------------------------------------------------

  function cell(value) { // no line breaks, nothing that a spreadsheet would run as a formula
    let text = String(value).replace(/[\u0000-\u001f]+/g, " ").trim();
    if (/^[=+\-@]/.test(text)) text = `'${text}`;
    return /[",;]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function csv() {
    clock(true);
    write();
    const lines = rows.map((row) => {
      const one = answers[row.pair] ?? empty();
      const values = { ...row, ...one, seconds: one.seconds ? one.seconds.toFixed(1) : "" };
      return data.columns.map((name) => cell(values[name] ?? "")).join(",");
    });
    return "\ufeff" + [data.columns.join(","), ...lines, ""].join("\r\n");
  }

  $("export").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
    link.download = `${data.rater}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    exported = true;
    $("sent").textContent = `${link.download} was written to your downloads.`;
  });

  $("send").addEventListener("click", async () => {
    $("send").disabled = true;
    $("sent").textContent = "Sending.";
    try {
      const response = await fetch("answers", { method: "POST", headers: { "Content-Type": "text/csv" }, body: csv() });
      const text = (await response.text()).slice(0, 300);
      if (!response.ok) throw new Error(text);
      exported = true;
      $("sent").textContent = text;
    } catch (error) {
      $("sent").textContent = `Not sent: ${error.message} Your answers are still here: try again, or export them.`;
    }
    $("send").disabled = false;
  });

  // --- controls ------------------------------------------------------------------------------------------------

  for (const group of document.querySelectorAll("[data-field]")) {
    group.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) choose(group.dataset.field, button.dataset.value);
    });
  }
  const toggle = () => (playing ? pause() : play());
  const slower = () => {
    speed = (speed + 1) % speeds.length;
    for (const video of videos) video.defaultPlaybackRate = video.playbackRate = speeds[speed];
    paint();
  };
  const loop = () => { looping = !looping; paint(); };
  const again = () => { playing = true; restart(); paint(); };
  $("begin").addEventListener("click", () => { if (rows.length) show(done() === rows.length ? "end" : "rate"); });
  $("forget").addEventListener("click", () => {
    if (!confirm("Forget all answers in this browser?")) return;
    answers = {};
    at = 0;
    exported = true;
    write();
    paint();
  });
  $("play").addEventListener("click", toggle);
  $("restart").addEventListener("click", again);
  $("speed").addEventListener("click", slower);
  $("loop").addEventListener("click", loop);
  $("back").addEventListener("click", back);
  $("next").addEventListener("click", next);
  $("pause-study").addEventListener("click", () => show("end"));
  $("last").addEventListener("click", () => show("rate"));
  $("open").addEventListener("click", () => { at = Math.max(0, rows.findIndex((row) => !isDone(row))); show("rate"); });
  $("comment").addEventListener("input", () => { answer().comment = $("comment").value; exported = false; write(); });

  // A button that was clicked keeps the focus, but space and Enter go on meaning the videos and the next pair; only
  // on one that was reached by Tab they press it.
  let clicked = null;
  document.addEventListener("pointerdown", (event) => { clicked = event.target.closest("button, summary"); });
  document.addEventListener("focusin", (event) => { if (event.target !== clicked) clicked = null; });
  const presses = (target) => target.matches("button, summary") && target !== clicked;

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    if (shown !== "rate" || event.ctrlKey || event.metaKey || event.altKey || target.tagName === "TEXTAREA") return;
    const keys = {
      a: () => choose("choice", "a"), b: () => choose("choice", "b"), r: again, s: slower, l: loop,
      " ": toggle, enter: next, arrowright: next, backspace: back, arrowleft: back,
    };
    const key = event.key.toLowerCase();
    if (!(key in keys) || (presses(target) && (key === " " || key === "enter"))) return;
    event.preventDefault();
    if (!event.repeat) keys[key]();
  });
  document.addEventListener("keyup", (event) => { // the press of a button comes with the key's end
    if (shown === "rate" && event.key === " " && event.target.matches("button, summary") && !presses(event.target)) event.preventDefault();
  });

  document.addEventListener("visibilitychange", () => {
    clock(!document.hidden);
    if (document.hidden) { pause(); write(); }
  });
  addEventListener("pagehide", () => { clock(false); write(); });
  addEventListener("storage", (event) => { // the same page in another tab
    if (event.key !== place) return;
    since = null;
    read();
    show("start");
    tell("The answers were changed in another tab. Use one tab only.");
  });
  addEventListener("beforeunload", (event) => { if (!stored && !exported) event.preventDefault(); });

  read();
  write();
  show("start");
  requestAnimationFrame(tick);
})();
