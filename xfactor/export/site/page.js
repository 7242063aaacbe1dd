// Applies the camera motion of a video to a picture, with two ONNX networks.
const element = (id) => document.getElementById(id);
const say = (text) => { element('status').textContent = text; };
const facts = await (await fetch('model.json')).json();
const { width, height } = facts;

let ort, where, networks, frames = [], moved = [], playing = null, run = 0;

// Opens both networks, on the GPU ('webgpu') or the CPU ('wasm').
async function open(provider) {
  ort = await import(`./ort/ort.${provider}.min.mjs`);
  // More threads need headers that plain file servers do not send.
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL('ort/', import.meta.url).href;
  ort.env.logLevel = 'error';
  const options = { executionProviders: [provider], logSeverityLevel: 3 };
  const [encoder, renderer] = [
    await ort.InferenceSession.create('encoder.onnx', options),
    await ort.InferenceSession.create('renderer.onnx', options)];
  where = provider === 'wasm' ? 'CPU' : 'GPU';
  return { encoder, renderer };
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
  const reference = toTensor(read[0], batch);
  const context = toTensor(scene, [1, 1, height, width, 3]);
  const zeros = new Float32Array(dim), drawn = [];
  const start = performance.now();
  for (const [i, frame] of read.entries()) {
    // The reference's own pose is zero.
    const values = i === 0 ? zeros : (await networks.encoder.run(
      { reference, frame: toTensor(frame, batch) })).pose.data;
    const { picture } = await networks.renderer.run({
      context,
      context_poses: new ort.Tensor('float32', zeros, [1, 1, dim]),
      pose: new ort.Tensor('float32', values, [1, dim]),
    });
    if (mine !== run) return;
    drawn.push(toPixels(picture.data));
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

const attempt = () => transfer().catch((error) => say(`${error.message}.`));

element('frames').value = Math.min(facts.window ?? 16, 16);
for (const id of ['motion', 'moved']) {
  Object.assign(element(id), { width, height });
}
for (const id of ['video', 'picture', 'frames', 'seconds']) {
  element(id).addEventListener('change', attempt);
}
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
});
try {
  networks = await load();
  say('Choose a video and a picture.');
  attempt();
} catch (error) {
  say(`The model cannot be loaded (${error.message}): export it again.`);
}
