// The admin API with the token of the person who looks. The token is kept for this tab alone.

const KEY = 'trunkline.token';
const BASE = new URL('api/v1/', document.baseURI);
/** Longest wait for an answer. */
const PATIENCE = 10_000;

/** Why there is no answer: `status` 0 where the server is not there. */
export class ApiError extends Error {
  constructor(status, message, hint) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

/** Takes the token out of the address, so that it stays neither in sight nor in the history. */
export function takeToken() {
  const found = /[#&]token=([^&]*)/.exec(location.hash);
  if (!found) return;
  let token = found[1];
  try {
    token = decodeURIComponent(token);
  } catch {
    // It is taken as it stands; the server says whether it is right.
  }
  if (token) sessionStorage.setItem(KEY, token);
  history.replaceState(null, '', location.pathname + location.search + '#/overview');
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

function address(path, query) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined && value !== null && value !== '') url.searchParams.set(name, value);
  }
  return url;
}

async function said(response) {
  let error = {};
  try {
    error = await response.json();
  } catch {
    // It is no answer of this API; the status has to say it.
  }
  return new ApiError(response.status, error.error ?? `the server answered ${response.status}`, error.hint);
}

async function ask(url, options, signal) {
  const limit = AbortSignal.timeout(PATIENCE);
  try {
    return await fetch(url, {
      ...options,
      headers: { ...options?.headers, Authorization: `Bearer ${token.get() ?? ''}` },
      credentials: 'omit',
      cache: 'no-store',
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, 'the server does not answer', 'the page tries again by itself');
  }
}

export async function get(path, query, signal) {
  const response = await ask(address(path, query), {}, signal);
  if (!response.ok) throw await said(response);
  return response.json();
}

export async function post(path, value, signal) {
  const headers = { 'Content-Type': 'application/json' };
  const response = await ask(address(path), { method: 'POST', headers, body: JSON.stringify(value) }, signal);
  if (!response.ok) throw await said(response);
  return response.json();
}

/** `/readyz`, which answers with a document also when it says no. */
export async function health(signal) {
  const response = await ask(new URL('readyz', document.baseURI), {}, signal);
  return response.json();
}

/**
 * Follows observations as they come, until `signal`. `on.seen(observation)`, `on.missed(n)`. Resolves when the server ends
 * it. The browser's own EventSource cannot send a token.
 */
export async function follow(query, on, signal) {
  const response = await fetch(address('observations', query), {
    headers: { Authorization: `Bearer ${token.get() ?? ''}`, Accept: 'text/event-stream' },
    credentials: 'omit',
    cache: 'no-store',
    signal,
  });
  if (!response.ok) throw await said(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest = events(rest + value, on);
  }
}

/** Reads whole events from `text`, and returns what is left of it. */
export function events(text, on) {
  const whole = text.split(/\r?\n\r?\n/);
  const rest = whole.pop();
  for (const event of whole) {
    let [kind, data] = ['message', ''];
    for (const line of event.split(/\r?\n/)) {
      if (line.startsWith('event:')) kind = line.slice(6).trim();
      else if (line.startsWith('data:')) data += line.slice(5).trim();
    }
    if (!data) continue;
    const value = JSON.parse(data);
    if (kind === 'missed') on.missed?.(value.missed);
    else on.seen?.(value);
  }
  return rest;
}
