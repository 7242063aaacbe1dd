// Applies the camera motion of a video, or of keys and mouse, to a picture.
import { open as openFlight } from './fly.js';

const element = (id) => document.getElementById(id);
const say = (text) => { element('status').textContent = text; };
const facts = await (await fetch('model.json')).json();
const { width, height } = facts;

let ort, where, networks, flight, last = Promise.resolve(), frames = [], moved = [], playing = null, run = 0;

// Opens the networks, on the GPU ('webgpu') or the CPU ('wasm').
async function open(provider) {
  ort = await import(`./ort/ort.${provider}.min.mjs`);
  // More threads need headers that plain file servers do not send.
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL('ort/', import.meta.url).href;
  ort.env.logLevel = 'error';
  const options = { executionProviders: [provider], logSeverityLevel: 3 };
  const names = ['encoder', 'renderer'];
  if (facts.calibration) names.push('calibration');
  const opened = {};
  for (const name of names) {
    opened[name] = await ort.InferenceSession.create(`${name}.onnx`, options);
  }
  where = provider === 'wasm' ? 'CPU' : 'GPU';
  return opened;
}

// On the GPU if there is one that works.
async function load() {
  try {
    if (await navigator.gpu?.requestAdapter()) return await open('webgpu');
  } catch (error) {
    console.warn(`WebGPU cannot be used (${error.message})`);
  }
  return open('wasm');
}

// Runs a network. They run one after the other.
function evaluate(name, inputs) {
  const next = () => networks[name].run(inputs);
  return last = last.then(next, next);
}

// The picture that the scene shows at a pose, as pixels.
async function render(context, pose) {
  const dim = facts.model.pose_dim;
  const { picture } = await evaluate('renderer', {
    context,
    // The context's own pose is zero.
    context_poses: new ort.Tensor(
      'float32', new Float32Array(dim), [1, 1, dim]),
    pose,
  });
  return toPixels(picture.data);
}

// The central part of a picture or video frame as pixels of the model's size.
function fit(source, sourceWidth, sourceHeight) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.imageSmoothingQuality = 'high';
  const scale = Math.min(sourceWidth / width, sourceHeight / height);
  const [w, h] = [width * scale, height * scale];
  context.drawImage(source, (sourceWidth - w) / 2, (sourceHeight - h) / 2,
    w, h, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

// Pixels as float32 [-1, 1] RGB, and back.
function toTensor(pixels, shape) {
  const values = new Float32Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      values[3 * i + c] = pixels.data[4 * i + c] / 127.5 - 1;
    }
  }
  return new ort.Tensor('float32', values, shape);
}

function toPixels(values) {
  const pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      pixels.data[4 * i + c] = Math.round((values[3 * i + c] + 1) * 127.5);
    }
    pixels.data[4 * i + 3] = 255;
  }
  return pixels;
}

async function readVideo(file, count, seconds) {
  const video = document.createElement('video');
  video.muted = true;
  const until = (name) => new Promise((done, failed) => {
    video.addEventListener(name, done, { once: true });
    video.addEventListener('error', () => failed(new Error(
      `this browser cannot read ${file.name}: choose another video`)));
  });
  const loaded = until('loadeddata');
  video.src = URL.createObjectURL(file);
  try {
    await loaded;
    const length = Math.min(seconds, video.duration);
    const read = [];
    for (let i = 0; i < count; i++) {
      const there = until('seeked');
      video.currentTime = length * i / count;
      await there;
      read.push(fit(video, video.videoWidth, video.videoHeight));
    }
    return read;
  } finally {
    URL.revokeObjectURL(video.src);
  }
}

async function readPicture(file) {
  try {
    const picture = await createImageBitmap(file);
    return fit(picture, picture.width, picture.height);
  } catch {
    throw new Error(
      `this browser cannot read ${file.name}: choose another picture`);
  }
}

function show(i) {
  element('shown').value = i;
  for (const [id, pixels] of [['motion', frames[i]], ['moved', moved[i]]]) {
    element(id).getContext('2d').putImageData(pixels, 0, 0);
  }
}

async function transfer() {
  const [video, picture] = [element('video').files[0],
    element('picture').files[0]];
  if (!networks || !video || !picture) return;
  const mine = ++run;  // A newer choice ends an older one.
  stop();
  element('shown').disabled = element('play').disabled = true;
  say('Reading the files.');
  const number = (id) => element(id).valueAsNumber;
  const scene = await readPicture(picture);
  const read = await readVideo(video, number('frames'), number('seconds'));
  const batch = [1, height, width, 3], dim = facts.model.pose_dim;
  const zero = new ort.Tensor('float32', new Float32Array(dim), [1, dim]);
  const reference = toTensor(read[0], batch);
  const context = toTensor(scene, [1, 1, height, width, 3]);
  const drawn = [];
  const start = performance.now();
  for (const [i, frame] of read.entries()) {
    // The reference's own pose is zero.
    const { pose } = i === 0 ? { pose: zero } : await evaluate('encoder',
      { reference, frame: toTensor(frame, batch) });
    drawn.push(await render(context, pose));
    if (mine !== run) return;
    [frames, moved] = [read, drawn];
    show(i);
    say(`Frame ${i + 1} of ${read.length}.`);
    await new Promise((done) => setTimeout(done));  // Lets the page draw.
  }
  const rate = read.length / (performance.now() - start) * 1000;
  say(`${read.length} frames, ${rate.toFixed(1)} frames per second on the ${where}.`);
  element('shown').max = read.length - 1;
  element('shown').disabled = element('play').disabled = false;
}

// Puts the camera of the keys into the picture.
async function chooseScene() {
  const [picture] = element('picture').files;
  if (!networks?.calibration || !picture) return;
  const context = toTensor(
    await readPicture(picture), [1, 1, height, width, 3]);
  const sayHere = (text, beyond = false) => {
    element('distance').textContent = text;
    element('distance').classList.toggle('beyond', beyond);
  };
  const see = async (camera) => {
    const { pose, distance } = await evaluate('calibration', {
      camera: new ort.Tensor(
        'float32', Float32Array.from(camera.flat()), [1, 3, 4]) });
    const pixels = await render(context, pose);
    return { picture: await createImageBitmap(pixels),
      distance: distance.data[0] };
  };
  flight ??= openFlight(element('flight'),
    { ...facts, ...facts.calibration, cameras: 300 },
    (camera) => flight.see(camera), sayHere);
  flight.see = see;
  await flight.reset();
}

function stop() {
  clearInterval(playing);
  playing = null;
  element('play').textContent = 'Play';
}

function play() {
  if (playing !== null) return stop();
  element('play').textContent = 'Stop';
  const pause = 1000 * element('seconds').valueAsNumber / moved.length;
  playing = setInterval(() => show(
    (element('shown').valueAsNumber + 1) % moved.length), pause);
}

const attemptScene = () => chooseScene().catch(
  (error) => say(`${error.message}.`));
const attempt = () => transfer().catch((error) => say(`${error.message}.`));

element('frames').value = Math.min(facts.window ?? 16, 16);
for (const id of ['motion', 'moved']) {
  Object.assign(element(id), { width, height });
}
for (const id of ['video', 'picture', 'frames', 'seconds']) {
  element(id).addEventListener('change', attempt);
}
element('picture').addEventListener('change', attemptScene);
element('shown').addEventListener('input', () => {
  stop();
  show(element('shown').valueAsNumber);
});
element('play').addEventListener('click', play);
document.addEventListener('dragover', (event) => event.preventDefault());
document.addEventListener('drop', (event) => {
  event.preventDefault();
  for (const file of event.dataTransfer.files) {
    const kind = file.type.startsWith('video/') ? 'video' : 'picture';
    const one = new DataTransfer();
    one.items.add(file);
    element(kind).files = one.files;
  }
  attempt();
  attemptScene();
});
if (!facts.calibration) {
  element('distance').textContent = 'This model cannot: its run had no ' +
    'calibration when it was exported (python -m xfactor.calibrate).';
}
try {
  networks = await load();
  say('Choose a picture and a video.');
  attempt();
  attemptScene();
} catch (error) {
  say(`The model cannot be loaded (${error.message}): export it again.`);
}
