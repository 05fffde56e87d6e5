// Players and the 3D viewer of the report. Without this script the videos have the browser's own controls, and the heads
// their pictures.
"use strict";
(() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

  function element(tag, attributes = {}, text = "") {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  }

  // One video holds all panels of a row, so they cannot drift apart; every panel is a canvas with its part of it.
  function makePlayer(figure) {
    const video = figure.querySelector("video");
    const { columns, width, height, fps, frames } = Object.fromEntries(
      Object.entries(figure.dataset).map(([name, value]) => [name, Number(value)]),
    );
    const panels = [...figure.querySelectorAll(".panels li")].map((item, number) => {
      const canvas = element("canvas", { width, height, role: "img", "aria-label": item.textContent.trim() });
      item.prepend(canvas);
      return [canvas.getContext("2d"), (number % columns) * width, Math.floor(number / columns) * height];
    });
    const bar = element("div", { class: "controls", role: "group", "aria-label": "All videos of this row" });
    const play = element("button", { type: "button" }, "Play");
    const back = element("button", { type: "button", "aria-label": "One frame back" }, "‹");
    const on = element("button", { type: "button", "aria-label": "One frame on" }, "›");
    const seek = element("input", { type: "range", min: 0, max: frames - 1, step: 1, value: 0, "aria-label": "Frame" });
    const count = element("output");
    const label = element("label", {}, "Speed ");
    const speed = element("select");
    for (const [value, text] of [[1, "1"], [0.5, "1/2"], [0.25, "1/4"], [0.1, "1/10"]]) {
      speed.append(element("option", { value }, text));
    }
    label.append(speed);
    bar.append(play, back, seek, on, count, label);
    figure.append(bar);
    figure.classList.add("driven");
    video.removeAttribute("controls");
    video.tabIndex = -1;

    const paint = (source) => {
      for (const [context, x, y] of panels) context.drawImage(source, x, y, width, height, 0, 0, width, height);
    };
    const frame = () => Math.min(frames - 1, Math.max(0, Math.floor(video.currentTime * fps + 0.01)));
    const tell = () => {
      seek.value = frame();
      count.textContent = `${frame() + 1} / ${frames}`;
      play.textContent = video.paused ? "Play" : "Pause";
    };
    const draw = () => {
      if (video.readyState >= 2) paint(video);
      tell();
    };
    const poster = new Image();
    poster.onload = () => video.readyState < 2 && paint(poster);
    poster.src = video.poster;
    let stopped = calm;
    const start = () => video.play().catch(() => {}); // a page may not be allowed to start it: the button stays
    const go = (number) => {
      stopped = true;
      video.pause();
      video.currentTime = (((number % frames) + frames) % frames + 0.5) / fps;
    };
    play.addEventListener("click", () => {
      stopped = !video.paused;
      if (stopped) video.pause();
      else start();
    });
    back.addEventListener("click", () => go(frame() - 1));
    on.addEventListener("click", () => go(frame() + 1));
    seek.addEventListener("input", () => go(Number(seek.value)));
    speed.addEventListener("change", () => (video.playbackRate = Number(speed.value)));
    for (const name of ["loadeddata", "seeked", "play", "pause"]) video.addEventListener(name, draw);
    if ("requestVideoFrameCallback" in video) {
      const next = () => { draw(); video.requestVideoFrameCallback(next); };
      video.requestVideoFrameCallback(next);
    } else {
      const next = () => { if (!video.paused) draw(); requestAnimationFrame(next); };
      next();
    }
    new IntersectionObserver(([entry]) => {
      if (!entry.isIntersecting) video.pause();
      else {
        video.preload = "auto";
        if (!stopped) start();
      }
    }).observe(figure);
    tell();
  }

  const heads = new Map(); // address of a head's script -> the bytes of its .glb
  window.head3dHead = (text) => {
    heads.set(document.currentScript.getAttribute("src"), Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  };
  const loaded = new Map();
  function load(address) {
    if (!loaded.has(address)) {
      loaded.set(address, new Promise((done, failed) => {
        const script = element("script", { src: address });
        script.onload = done;
        script.onerror = () => failed(new Error(`${address} is missing beside this page`));
        document.head.append(script);
      }));
    }
    return loaded.get(address);
  }

  function hasWebGL() {
    const context = document.createElement("canvas").getContext("webgl2");
    context?.getExtension("WEBGL_lose_context")?.loseContext();
    return context !== null;
  }

  function makeViewer(section) {
    const panel = section.querySelector(".viewer");
    const title = panel.querySelector("h3");
    const say = panel.querySelector(".say");
    const swing = panel.querySelector("[name=swing]");
    let viewer = null;
    let file = "";
    let started = 0;
    const sway = (now) => {
      if (!swing.checked || panel.hidden) return;
      viewer.place(0.6 * Math.sin((now - started) / 900), 0);
      requestAnimationFrame(sway);
    };
    async function show(button) {
      button.closest("figure").after(panel);
      panel.hidden = false;
      title.textContent = button.dataset.name;
      say.textContent = "Loading";
      try {
        file = button.dataset.head;
        await Promise.all([load("viewer.js"), load(file)]);
        viewer ??= window.head3dViewer(panel.querySelector(".stage"));
        await viewer.show(heads.get(file).slice(0), button.dataset.name);
        say.textContent = "Drag, pinch or use the arrow keys.";
        if (swing.checked) requestAnimationFrame(sway);
      } catch (error) {
        say.textContent = `It cannot be shown here (${error.message}); the pictures show the same head.`;
      }
    }
    panel.querySelector("[name=shape]").addEventListener("change", (event) => viewer?.shape(event.target.checked));
    panel.querySelector(".front").addEventListener("click", () => { swing.checked = false; viewer?.place(0, 0); });
    panel.querySelector(".close").addEventListener("click", () => { panel.hidden = true; });
    swing.addEventListener("change", () => {
      started = performance.now();
      if (viewer) requestAnimationFrame(sway);
    });
    panel.querySelector(".save").addEventListener("click", () => {
      const bytes = heads.get(file);
      if (!bytes) return;
      const link = element("a", { download: `${title.textContent}.glb` });
      link.href = URL.createObjectURL(new Blob([bytes], { type: "model/gltf-binary" }));
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    for (const button of section.querySelectorAll(".turn")) {
      button.hidden = false;
      button.addEventListener("click", () => show(button));
    }
  }

  document.querySelectorAll(".player").forEach(makePlayer);
  const section = document.querySelector("#heads");
  if (section?.querySelector(".turn") && hasWebGL()) makeViewer(section);
})();
