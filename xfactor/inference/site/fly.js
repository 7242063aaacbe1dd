// A camera that keys and mouse move through a picture, and the path that it
// takes: shared by the demo's tab and the page of `tools/export.py --to=web`.
//
// Axes are those of the scene's picture: x right, y down, z ahead. A pose is
// the camera's place, its yaw (to the right) and its pitch (up), in radians.

const RATE = 10;  // Degrees per second that arrow keys turn.
const TAP = 0.1;  // Seconds that the first step of a key takes.
const LONGEST = 0.25;  // Seconds that any other step takes at most.
const FRAMES = 10;  // Pictures that the rate is the average of.
const DIRECTIONS = 40;  // Most cameras of the path whose direction is drawn.
const MOVES = {
  KeyW: [0, 0, 1], KeyS: [0, 0, -1], KeyA: [-1, 0, 0], KeyD: [1, 0, 0],
  KeyQ: [0, -1, 0], KeyE: [0, 1, 0],
};
const TURNS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1],
};
const ORANGE = 'rgb(200, 80, 0)', BLUE = '#48c', GREY = '#888';
const START = { at: [0, 0, 0], yaw: 0, pitch: 0 };
const PIXELS = 512;  // Side of the pictures that transforms.json is for.

const element = (id) => document.getElementById(id);

// Content of the element that `open` fills.
const PARTS = `
  <style>
    #fly { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem;
      align-items: flex-start; }
    #fly figure { flex: 1 1 18rem; max-width: 29rem; margin: .5rem 0; }
    #fly canvas { width: 100%; background: #8882; cursor: grab;
      border: 3px solid transparent; box-sizing: border-box;
      touch-action: none; }
    #fly canvas:focus { outline: 2px solid #48c; }
    #view { image-rendering: pixelated; }
    #fly #view.beyond { border-color: ${ORANGE}; }
    .beyond { color: ${ORANGE}; }
    kbd { border: 1px solid #8888; border-radius: .2rem; padding: 0 .3em;
      font: inherit; }
    #where { min-height: 1.5em; margin: .3rem 0; }
  </style>
  <div id="fly">
    <figure>
      <canvas id="view" tabindex="0" aria-label="View of the camera"></canvas>
      <figcaption><span id="moves"><kbd>W</kbd> <kbd>A</kbd> <kbd>S</kbd>
      <kbd>D</kbd> move, <kbd>Q</kbd> goes up, <kbd>E</kbd> down; </span>arrow
      keys or the mouse turn, <kbd>R</kbd> returns to the start.</figcaption>
    </figure>
    <figure>
      <canvas id="path" width="464" height="464"
        aria-label="Path of the camera"></canvas>
      <figcaption>The path in the axes of the picture; drag to turn it.
      </figcaption>
    </figure>
  </div>
  <p id="only-turns" hidden>The cameras of the calibration only turn, so the
  keys that move do nothing.</p>
  <p id="where"></p>
  <p id="save"><span id="length"></span>
  <button id="save-cameras" disabled>Cameras (transforms.json)</button></p>`;

// Right, down and ahead of a camera.
function axes({ yaw, pitch }) {
  const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch),
    Math.sin(pitch)];
  return [[cy, 0, -sy], [sy * sp, cp, cy * sp], [sy * cp, -sp, cy * cp]];
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const along = (at, directions, steps) => at.map((value, i) =>
  value + dot(steps, directions.map((direction) => direction[i])));

// World to camera, [R|t].
const matrix = (pose) => axes(pose).map(
  (axis) => [...axis, -dot(axis, pose.at)]);

function turned(pose, right, up) {
  const most = Math.PI / 2 - 0.01;
  return { ...pose, yaw: pose.yaw + right,
    pitch: Math.max(-most, Math.min(most, pose.pitch + up)) };
}

// Camera to world, with OpenGL's axes of the camera: up is y, z is behind.
function transforms(path, focal) {
  const pixels = focal * PIXELS, half = PIXELS / 2;
  const frames = path.map((pose, i) => {
    const [right, down, ahead] = axes(pose);
    return {
      file_path: `images/${String(i + 1).padStart(6, '0')}.png`,
      transform_matrix: [...pose.at.map(
        (at, k) => [right[k], -down[k], -ahead[k], at]), [0, 0, 0, 1]],
    };
  });
  return JSON.stringify({ w: PIXELS, h: PIXELS, fl_x: pixels, fl_y: pixels,
    cx: half, cy: half, frames }, null, 1);
}

// Offers a file to be saved.
export function download(name, blob) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Fills an element with a view that keys and mouse move, and its path.
//
// facts: width and height of a picture in pixels; focal, move, unit and limit
//   of the calibration; cameras, the longest path.
// render: takes a camera, [R|t] relative to that of the scene; returns a
//   promise of { picture, distance }. The picture is one that drawImage takes.
// say: shows a sentence, in orange if the second argument is true.
//
// Returns the canvas `view` and three functions: `reset` starts at a new scene,
// `path` returns the cameras, `rate` the pictures per second. Each picture
// sends the event 'moved' to `root`.
export function open(root, facts, render, say) {
  root.innerHTML = PARTS;
  const [view, map] = [element('view'), element('path')];
  let started = false, flying = false, rate = null, run = 0;
  let pose = START, shown = null;  // Where the camera is, and what is shown.
  let path = [];  // Cameras shown since the start, the last ones if many.
  let look = { yaw: -0.6, pitch: 0.5 };  // From where the path is seen.
  const held = new Set(), pressed = new Set();  // Keys.

  // Moves by the keys for some seconds.
  function step(seconds) {
    const angle = RATE * Math.PI / 180 * seconds, length = facts.move * seconds;
    for (const key of new Set([...held, ...pressed])) {
      if (key in TURNS) {
        pose = turned(pose, ...TURNS[key].map((x) => x * angle));
      } else {
        const steps = MOVES[key].map((x) => x * length);
        pose = { ...pose, at: along(pose.at, axes(pose), steps) };
      }
    }
    pressed.clear();
  }

  // Shows pictures, one at a time, until the camera stays.
  async function fly() {
    if (flying || !started) return;
    flying = true;
    const times = [];
    try {
      while (held.size || pressed.size || shown !== pose) {
        const now = performance.now() / 1000;
        const last = times.at(-1) ?? now - TAP;
        times.push(now);
        step(Math.min(now - last, LONGEST));
        const [mine, where] = [run, pose];
        const { picture, distance } = await render(matrix(where));
        await new Promise((done) => setTimeout(done));  // Lets keys be read.
        if (mine !== run) continue;  // Started again while it was rendered.
        view.getContext('2d').drawImage(picture, 0, 0);
        shown = where;
        path.push({ ...where, beyond: distance > facts.limit });
        path = path.slice(-facts.cameras);
        if (times.length > 1) {
          const recent = times.slice(-FRAMES);
          rate = recent.length / (performance.now() / 1000 - recent[0]);
        }
        tell(distance);
        draw();
      }
    } catch (error) {
      held.clear();
      pressed.clear();
      say(`${error.message}.`);
    } finally {
      flying = false;
    }
  }

  function tell(distance) {
    const beyond = distance > facts.limit, { at, yaw, pitch } = pose;
    view.classList.toggle('beyond', beyond);
    const far = distance.toFixed(1), limit = facts.limit.toFixed(1);
    say(`${far} standard deviations from the motions of the calibration (99 % ` +
      `are within ${limit})` + (beyond ?
        ': the picture is unreliable; go back, or press R.' : '.'), beyond);
    const degrees = (angle, positive, negative) =>
      `${Math.abs(angle * 180 / Math.PI).toFixed(1)}° ` +
      (angle < 0 ? negative : positive);
    const [x, y, z] = at.map((value) => value.toFixed(2));
    const place = `Position ${x} right, ${y} down, ${z} ahead in ${facts.unit}; `;
    element('where').textContent = (facts.move ? place : '') +
      `turned ${degrees(yaw, 'right', 'left')}, ${degrees(pitch, 'up', 'down')}` +
      (rate ? `; ${rate.toFixed(1)} pictures a second` : '');
    element('length').textContent = `Path of ${path.length} cameras` +
      (path.length === facts.cameras ? ' (the last ones):' : ':');
    element('save-cameras').disabled = path.length < 2;
    root.dispatchEvent(new Event('moved'));
  }

  // The path and its cameras, in parallel projection.
  function draw() {
    const context = map.getContext('2d');
    const { width, height } = map;
    context.clearRect(0, 0, width, height);
    const places = [START, ...path].map(({ at }) => at);
    const [low, high] = [Math.min, Math.max].map((end) =>
      [0, 1, 2].map((i) => end(...places.map((at) => at[i]))));
    const middle = low.map((value, i) => (value + high[i]) / 2);
    const extent = Math.max(
      ...low.map((value, i) => high[i] - value), facts.move || 1);
    const directions = axes(look), scale = 0.5 * width / extent;
    const flat = (at) => {
      const from = at.map((value, i) => value - middle[i]);
      return [width / 2 + scale * dot(from, directions[0]),
        height / 2 + scale * dot(from, directions[1])];
    };
    const line = (colour, thick, ...points) => {
      context.beginPath();
      context.strokeStyle = colour;
      context.lineWidth = thick;
      points.map(flat).forEach(([x, y]) => context.lineTo(x, y));
      context.stroke();
    };
    // What a camera sees at some distance is drawn as a pyramid.
    const size = (facts.move ? 0.12 : 0.4) * extent;
    const pyramid = (pose, colour, thick) => {
      const half = size / 2 / facts.focal;
      const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([x, y]) =>
        along(pose.at, axes(pose), [x * half, y * half, size]));
      line(colour, thick, ...corners, corners[0]);
      corners.forEach((corner) => line(colour, thick, pose.at, corner));
    };
    context.font = '15px system-ui, sans-serif';
    context.fillStyle = GREY;
    for (const [name, end] of [['right', [1, 0, 0]], ['up', [0, -1, 0]],
      ['ahead', [0, 0, 1]]]) {
      const tip = end.map((x) => 0.5 * extent * x);
      line(GREY, 1, START.at, tip);
      context.fillText(name, ...flat(tip));
    }
    pyramid(START, GREY, 1);
    const often = Math.ceil(path.length / DIRECTIONS);
    path.forEach((camera, i) => {
      const colour = camera.beyond ? ORANGE : BLUE;
      if (i) line(colour, 2, path[i - 1].at, camera.at);
      if (i % often) return;
      line(colour, 1, camera.at, along(camera.at, axes(camera), [0, 0, size]));
    });
    if (path.length) {
      pyramid(path.at(-1), path.at(-1).beyond ? ORANGE : BLUE, 2);
    }
  }

  // Starts again at the picture of the scene.
  function reset() {
    started = true;
    run++;
    [pose, path, shown] = [{ ...START }, [], null];
    return fly();
  }

  onDrag(view, (right, down) => {
    // The scene stays below the mouse.
    const field = 2 * Math.atan(0.5 / facts.focal);
    pose = turned(pose, -right * field, down * field);
    fly();
  });
  onDrag(map, (right, down) => {
    look = turned(look, -3 * right, 3 * down);
    draw();
  });
  addEventListener('keydown', (event) => {
    const { code, target } = event;
    const busy = target.tagName === 'SELECT' || target.type === 'number' ||
      (target.tagName === 'INPUT' && code in TURNS);
    if (busy || event.ctrlKey || event.metaKey || event.altKey) return;
    if (code === 'KeyR' && started) reset();
    if (!(code in TURNS) && !(code in MOVES && facts.move)) return;
    event.preventDefault();
    held.add(code);
    pressed.add(code);
    fly();
  });
  addEventListener('keyup', (event) => held.delete(event.code));
  addEventListener('blur', () => held.clear());
  element('save-cameras').addEventListener('click', () => download(
    'transforms.json', new Blob([transforms(path, facts.focal)])));
  element('only-turns').hidden = facts.move > 0;
  element('moves').hidden = facts.move === 0;
  Object.assign(view, { width: facts.width, height: facts.height });
  draw();
  return {
    reset,
    view,
    rate: () => rate,
    path: () => path.map(matrix),
  };
}

// Calls with the shares of the canvas that the mouse moves, right and down.
function onDrag(canvas, move) {
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener('pointermove', (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    move(event.movementX / canvas.clientWidth,
      event.movementY / canvas.clientHeight);
  });
}
