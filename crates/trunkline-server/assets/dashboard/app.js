// The page as a whole: the token, which view is shown, whether the server is there, and the theme.

import { get, takeToken, token } from './api.js';
import { el } from './dom.js';
import { Pulse } from './live.js';
import { tone } from './text.js';
import * as overview from './overview.js';
import * as conversations from './conversations.js';
import * as conversation from './conversation.js';
import * as subjects from './subjects.js';
import * as consumers from './consumers.js';
import * as deadLetters from './dead-letters.js';
import * as connections from './connections.js';
import * as components from './components.js';

const VIEWS = {
  overview,
  conversations,
  conversation,
  subjects,
  consumers,
  'dead-letters': deadLetters,
  connections,
  components,
};

const main = document.getElementById('main');
const views = document.getElementById('views');
const state = document.getElementById('state');
const leave = document.getElementById('leave');

/** Ends the view that is shown, and everything that runs for it. */
let shown = new AbortController();
/** Ends what runs for as long as there is a token. */
let session = new AbortController();
let pulse = null;

/** `#/conversation/c-42?state=open` as its parts. */
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, '').split('?');
  const [name, ...rest] = path.split('/').map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { name: Object.hasOwn(VIEWS, name) ? name : 'overview', rest, query: new URLSearchParams(query) };
}

function route({ focus = true } = {}) {
  if (!pulse) return;
  shown.abort();
  shown = new AbortController();
  const at = place();
  for (const link of views.querySelectorAll('a')) {
    const current = link.hash === `#/${at.name}` || (at.name === 'conversation' && link.hash === '#/conversations');
    if (current) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  main.replaceChildren();
  VIEWS[at.name].show(main, { pulse, signal: shown.signal, ...at });
  document.title = `${main.querySelector('h2')?.textContent ?? 'Trunkline'} · Trunkline`;
  if (focus) main.focus();
}

function tell(text, of) {
  // Only what changes is said, or a screen reader would never be silent.
  if (state.textContent === text) return;
  state.textContent = text;
  state.className = `state ${of ?? ''}`;
}

function beat() {
  if (pulse.error) {
    tell(pulse.error.status === 0 ? 'The server does not answer. Trying again…' : pulse.error.message, 'bad');
    return;
  }
  const { backend } = pulse.now.overview;
  const anew = pulse.restarts > 0 ? ' · the server was started anew' : '';
  const why = backend.reason ? `: ${backend.reason}` : '';
  tell(`Connected · ${backend.name} ${backend.state}${why}${anew}`, tone(backend.state));
}

function enter() {
  session = new AbortController();
  pulse = new Pulse();
  pulse.addEventListener('beat', beat);
  pulse.run(session.signal);
  views.hidden = false;
  leave.hidden = false;
  route({ focus: false });
}

/** Everything ends, and nothing of what was seen stays on the page. */
function forget() {
  token.forget();
  session.abort();
  shown.abort();
  pulse = null;
  views.hidden = true;
  leave.hidden = true;
  tell('', '');
  document.title = 'Trunkline';
}

function form(problem) {
  const input = el('input', { type: 'password', id: 'token', autocomplete: 'off', required: true, spellcheck: 'false', 'aria-describedby': 'token-help' });
  const said = el('p', { role: 'alert', class: problem ? 'problem' : null }, problem ?? '');
  const button = el('button', { type: 'submit', class: 'main' }, 'Open');
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    token.set(input.value.trim());
    try {
      await get('overview');
      enter();
    } catch (error) {
      token.forget();
      said.className = 'problem';
      said.textContent = [error.message, error.hint].filter(Boolean).join(' — ');
      button.disabled = false;
      input.focus();
    }
  };
  main.replaceChildren(
    el('form', { class: 'token', onsubmit: submit },
      el('h2', {}, 'Admin token'),
      el('p', { id: 'token-help', class: 'note' }, 'trunkline up prints it, and trunkline dashboard gives an address that has it. It is kept for this tab alone.'),
      el('label', { for: 'token' }, 'Token', input),
      said,
      button),
  );
  input.focus();
}

/** Themes in the order of the button; `system` is what the system prefers. */
const THEMES = ['system', 'light', 'dark'];
const prefersDark = matchMedia('(prefers-color-scheme: dark)');

function theme() {
  const chosen = localStorage.getItem('trunkline.theme');
  return THEMES.includes(chosen) ? chosen : 'system';
}

function applyTheme() {
  const dark = theme() === 'dark' || (theme() === 'system' && prefersDark.matches);
  document.documentElement.classList.toggle('dark', dark);
  document.getElementById('theme').textContent = `Theme: ${theme()}`;
}

document.getElementById('theme').addEventListener('click', () => {
  localStorage.setItem('trunkline.theme', THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]);
  applyTheme();
});
prefersDark.addEventListener('change', applyTheme);
document.getElementById('skip').addEventListener('click', (event) => {
  event.preventDefault();
  main.focus();
});
leave.addEventListener('click', () => {
  forget();
  form();
});
window.addEventListener('refused', () => {
  if (!pulse) return;
  forget();
  form('The server does not take this token any more. A server that was started anew has another one, unless server.auth.admin_token is set.');
});
window.addEventListener('hashchange', () => {
  const before = token.get();
  takeToken();
  if (token.get() && token.get() !== before) {
    session.abort();
    enter();
  } else {
    route();
  }
});

applyTheme();
takeToken();
if (token.get()) enter();
else form();
