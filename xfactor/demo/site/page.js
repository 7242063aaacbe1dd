// Chooses scenes; the server renders what the camera sees.
import { download, open } from './fly.js';

const element = (id) => document.getElementById(id);
const say = (text, beyond = false) => {
  element('status').textContent = text;
  element('status').classList.toggle('beyond', beyond);
};

let facts, flight, scene = null;

async function ask(name, body) {
  let answer;
  try {
    answer = await fetch(name, { method: 'POST', body });
  } catch {
    throw new Error('the server of this page does not answer; start it again');
  }
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

const attempt = (what) => (...values) =>
  what(...values).catch((error) => say(`${error.message}.`));

async function render(camera) {
  const answer = await ask('view', JSON.stringify(
    { scene, cameras: [camera] }));
  return {
    picture: await createImageBitmap(await answer.blob()),
    distance: Number(answer.headers.get('X-Distance')),
  };
}

async function chooseClip(frame) {
  say('Reading the clip.');
  const body = JSON.stringify({ clip: element('clip').value, frame });
  const found = await (await ask('clip', body)).json();
  element('frame').max = found.frames - 1;
  element('frame').value = found.frame;
  element('picture').value = '';
  scene = found.scene;
  await flight.reset();
}

async function choosePicture() {
  const [file] = element('picture').files;
  if (!file) return;
  if (file.size > facts.megabytes * 2 ** 20) {
    throw new Error(`${file.name} is larger than ${facts.megabytes} MB; ` +
      'choose a smaller picture');
  }
  say('Reading the picture.');
  scene = (await (await ask('picture', file)).json()).scene;
  flight.view.focus();
  await flight.reset();
}

async function saveVideo() {
  say('Making fly.mp4.');
  const rate = Math.max(1, Math.min(60, flight.rate() ?? 5));
  const answer = await ask('fly.mp4', JSON.stringify(
    { scene, rate, cameras: flight.path() }));
  download('fly.mp4', await answer.blob());
  say('fly.mp4 is made.');
}

await attempt(async () => {
  facts = await (await fetch('facts.json')).json();
  flight = open(element('flight'), facts, render, say);
  element('save').append(element('save-mp4'));
  element('flight').addEventListener('moved', () => {
    element('save-mp4').disabled = flight.path().length < 2;
  });
  element('clip').append(...facts.clips.map((clip) => new Option(clip)));
  element('clip').value = facts.clip;
  element('clip').addEventListener('change', attempt(async () => {
    flight.view.focus();
    await chooseClip();
  }));
  element('frame').addEventListener('change', attempt(
    () => chooseClip(element('frame').valueAsNumber)));
  element('picture').addEventListener('change', attempt(choosePicture));
  element('save-mp4').addEventListener('click', attempt(saveVideo));
  await chooseClip();
})();
