// The dashboard in a real Chromium: what a person sees and does there, and what must never happen. The test starts it with
// the address of the page, the token and the address for clients in its environment, and restarts the server when a line
// of this script says so. Everything is waited for; nothing is slept through.

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { delimiter, join } from "node:path";

const require = createRequire(import.meta.url);
const { chromium } = require("playwright-core");
const { connect } = require("nats");
/** Said to the browser through its tools, because the page's own policy lets no script in. */
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const { DASHBOARD, TOKEN, NATS } = process.env;
const ORIGIN = new URL(DASHBOARD).origin;
const EVIL = '<img src="x" onerror="window.hacked = true"><script>window.hacked = true</script>';
const VIEWS = ["overview", "conversations", "subjects", "consumers", "dead-letters", "connections", "components"];

const executablePath = process.env.PATH.split(delimiter).map((directory) => join(directory, "chromium")).find(existsSync);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const nats = await connect({ servers: NATS, name: "observer of the demo" });

/** Everything that pages asked for, and everything that they complained about. */
const [asked, complaints] = [[], []];

async function open(options) {
  const context = await browser.newContext({ reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.on("request", (request) => asked.push(request.url()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    // What the browser says of an answer that was no success is what this test provokes; the policy's complaints are not.
    if (message.type() === "error" && !/Failed to load resource/.test(message.text())) complaints.push(message.text());
  });
  return page;
}

function say(conversation, id, text) {
  const envelope = {
    id, timestamp: new Date().toISOString(), source: "web", type: "channel.inbound", correlationId: id,
    payload: { sender: "grace", text }, trace: { conversationId: conversation },
  };
  nats.publish("nachos.channel.web.inbound", JSON.stringify(envelope));
}

/** Nothing that keeps somebody out; of what was looked at in another colour only the colours. */
async function accessible(page, what, options = {}) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate((options) => globalThis.axe.run(options), options);
  const grave = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const shown = grave.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => `${node.html} ${node.failureSummary}`).join("; ")}`);
  assert.deepEqual(shown, [], what);
}

const tests = {
  async "without a token there is nothing but the form"() {
    const page = await open();
    await page.goto(`${DASHBOARD}`);
    await page.getByLabel("Token").waitFor();
    assert.equal(await page.locator("nav").isVisible(), false);
    assert.equal(await page.locator("table, svg.chart").count(), 0);
    assert.ok(!asked.some((url) => url.includes("/api/")), "nothing is asked for without a token");
    await accessible(page, "the form");
    await page.keyboard.type("wrong");
    await page.keyboard.press("Enter");
    await page.getByRole("alert").filter({ hasText: "not the server's admin token" }).waitFor();
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    await page.keyboard.press("Control+A");
    await page.keyboard.type(TOKEN);
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Overview" }).waitFor();
    await page.getByRole("button", { name: "Forget the token" }).click();
    await page.getByLabel("Token").waitFor();
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    await page.context().close();
  },

  async "the token leaves the address, and no answer may be framed or run what is not the server's"() {
    const page = await open();
    const response = await page.goto(`${DASHBOARD}#token=${TOKEN}`);
    await page.getByText("Connected · in_memory ok").waitFor();
    assert.ok(!(await page.evaluate(() => location.href)).includes(TOKEN));
    // Nor is it behind the back button, or in what the browser says of where it comes from.
    await page.goto(`${DASHBOARD}#/subjects`);
    await page.goBack();
    await page.getByRole("heading", { name: "Overview" }).waitFor();
    assert.ok(!(await page.evaluate(() => location.href)).includes(TOKEN));
    assert.equal(response.headers()["referrer-policy"], "no-referrer");
    const policy = response.headers()["content-security-policy"];
    for (const part of ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"]) assert.ok(policy.includes(part), policy);
    assert.ok(!policy.includes("unsafe"), policy);
    const again = await page.request.get(DASHBOARD, { headers: { "If-None-Match": response.headers().etag } });
    assert.equal(again.status(), 304);
    const without = await page.request.get(`${ORIGIN}/api/v1/overview`);
    assert.equal(without.status(), 401);
    const foreign = await page.request.get(`${ORIGIN}/api/v1/overview`, { headers: { Authorization: `Bearer ${TOKEN}`, Origin: "http://evil.example" } });
    assert.equal(foreign.status(), 403);
    await page.context().close();
  },

  async "each view has content, in both themes and for everybody"() {
    for (const colorScheme of ["light", "dark"]) {
      const page = await open({ colorScheme });
      await page.goto(`${DASHBOARD}#token=${TOKEN}`);
      const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const content = {
        overview: page.locator(".card dd", { hasText: "nachos.>" }),
        conversations: page.locator("tbody th a"),
        subjects: page.getByRole("cell", { name: "observer of the demo" }).or(page.getByRole("rowheader", { name: "nachos.watched" })).first(),
        consumers: page.getByRole("cell", { name: "workers" }),
        "dead-letters": page.getByRole("button", { name: /^Show dead letter/ }),
        connections: page.getByRole("rowheader", { name: "observer of the demo" }),
        components: page.getByText("threads do the work"),
      };
      for (const view of VIEWS) {
        await page.goto(`${DASHBOARD}#/${view}`);
        await content[view].first().waitFor();
        await accessible(page, `${view}, ${colorScheme}`, colorScheme === "dark" ? { runOnly: ["color-contrast"] } : {});
      }
      const dark = "rgb(16, 21, 27)";
      assert.equal((await ground()) === dark, colorScheme === "dark");
      const theme = page.getByRole("button", { name: /^Theme/ });
      await theme.click();
      assert.notEqual(await ground(), dark, "light");
      await theme.click();
      assert.equal(await ground(), dark, "dark, whatever the system says");
      await page.context().close();
    }
  },

  async "the rate of messages moves"() {
    const page = await open();
    await page.goto(`${DASHBOARD}#token=${TOKEN}`);
    const figure = page.locator(".card", { hasText: "Messages published" }).locator(".figure");
    await page.waitForFunction((element) => /^[1-9]|^0\.[1-9]/.test(element.textContent), await figure.elementHandle());
    await page.context().close();
  },

  async "a conversation grows, is read with the keyboard, and what is in it stays text"() {
    const page = await open();
    say("c-dash", "d-1", EVIL);
    await page.goto(`${DASHBOARD}#token=${TOKEN}`);
    await page.getByRole("heading", { name: "Overview" }).waitFor();
    // From the address to a payload without a mouse.
    await page.keyboard.press("Tab");
    while (!(await page.evaluate(() => document.activeElement.hash === "#/conversations"))) await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.getByRole("link", { name: "c-dash" }).focus();
    await page.keyboard.press("Enter");
    const rows = page.getByRole("option");
    await rows.first().waitFor();
    await page.getByText("Following live").waitFor();
    await page.getByRole("option", { name: /channel\.web\.outbound/ }).first().waitFor();
    const before = await rows.count();
    say("c-dash", "d-2", "What is 41 * 66?");
    await page.waitForFunction((n) => document.querySelectorAll("[role=option]").length > n + 3, before);
    await page.getByRole("option", { name: /channel\.web\.outbound/ }).nth(1).waitFor();
    await rows.first().focus();
    const payload = page.getByLabel("Payload");
    await payload.waitFor();
    assert.ok((await payload.textContent()).includes(JSON.stringify(EVIL).slice(1, -1)), await payload.textContent());
    assert.equal(await page.locator("main img, main script").count(), 0);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    const chosen = () => page.locator("[role=option][aria-selected=true]").getAttribute("data-index");
    assert.equal(await chosen(), "0");
    await page.keyboard.press("ArrowDown");
    assert.equal(await chosen(), "1");
    await page.keyboard.press("Home");
    assert.equal(await chosen(), "0");
    await accessible(page, "a conversation");
    await page.context().close();
  },

  async "retries, dead letters, gaps and errors are seen for what they are"() {
    const page = await open();
    const at = (ms) => new Date(Date.UTC(2026, 10, 22, 10, 15, 30, ms)).toISOString();
    const seen = (seq, what, more) => ({ seq, what, time: at(seq * 10), subject: "nachos.tool.search.task", size: 10, ...more });
    const observations = [
      seen(1, "published", { from: "gateway", to: [], stream: "tasks", type: "tool.task", body: { json: { query: EVIL } } }),
      seen(2, "handled", { to: ["worker-1"], attempt: 1, outcome: "nacked", reason: "out of quota", tookUs: 1500, consumer: "workers" }),
      seen(3, "handled", { to: ["worker-2"], attempt: 2, outcome: "terminated", tookUs: 90, consumer: "workers" }),
      seen(4, "deadLettered", { to: ["worker-2"], attempt: 2, reason: "rejected" }),
      seen(5, "redriven", { from: "dashboard" }),
      seen(6, "published", { from: "gateway", to: ["search"], subject: "nachos.tool.search.call", reply: "_INBOX.1", body: { text: EVIL } }),
      seen(7, "published", { from: "search", to: ["gateway"], subject: "_INBOX.1", body: { base64: "/w==" } }),
      seen(8, "noResponders", { from: "gateway", subject: "nachos.tool.gone.call" }),
    ];
    const summary = { id: "c-made", first: at(10), last: at(80), messages: 3, bytes: 30, state: "failed", participants: [], personas: [], tools: [], skills: [], retries: 1, deadLetters: 1, gaps: 0, errors: 1, omitted: 0 };
    await page.route("**/api/v1/conversations/c-made", (route) => route.fulfill({ json: { summary, observations } }));
    const followed = [];
    await page.route("**/api/v1/observations?*", (route) => {
      followed.push(new URL(route.request().url()).search);
      if (followed.length > 1) return; // Nothing more comes, and the stream does not end.
      const gap = { ...seen(9, "gap"), from: "gateway", missed: 7, reason: "slow" };
      route.fulfill({ contentType: "text/event-stream", body: `: following\n\nid: 9\ndata: ${JSON.stringify(gap)}\n\nevent: missed\ndata: {"missed":5}\n\n` });
      observations.push(gap);
      summary.gaps = 1;
    });
    await page.goto(`${DASHBOARD}#token=${TOKEN}`);
    await page.goto(`${DASHBOARD}#/conversation/c-made`);
    const row = (text) => page.getByRole("option", { name: text });
    for (const text of [/tool\.search\.task \(stored in tasks\), gateway to \(nobody\)/, /nacked in 1\.5 ms: out of quota, worker-1/, /terminated, attempt 2 in 90 µs, worker-2/, /dead letter, attempt 2: rejected/, /sent back to tool\.search\.task/, /answer to tool\.search\.call, search to gateway/, /nobody answers tool\.gone\.call/, /gap: 7 missing: slow/]) {
      await row(text).first().waitFor();
    }
    assert.equal(followed[0], "?conversation=c-made&after=8");
    assert.equal(await page.locator(".row.trouble").count() >= 4, true);
    assert.equal(await page.locator(".row.retry").count(), 2);
    await row(/tool\.search\.call/).first().click();
    assert.equal(await page.getByLabel("Payload").textContent(), EVIL);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    if (process.env.SHOT) await page.screenshot({ path: process.env.SHOT });
    await accessible(page, "a conversation that went wrong");
    await page.context().close();
  },

  async "on a telephone nothing scrolls sideways, and nothing moves when answers come"() {
    const page = await open({ viewport: { width: 360, height: 740 } });
    await page.goto(`${DASHBOARD}#token=${TOKEN}`);
    await page.getByText("Connected · in_memory ok").waitFor();
    const sideways = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    for (const view of VIEWS) {
      await page.goto(`${DASHBOARD}#/${view}`);
      const answered = page.waitForResponse(/\/api\/v1\//);
      await page.reload();
      await answered;
      await page.locator("h2").waitFor();
      await page.getByText("Connected · in_memory ok").waitFor();
      assert.ok((await sideways()) <= 0, `${view} is wider than the page by ${await sideways()}`);
      const shifts = await page.evaluate(() => new Promise((resolve) => {
        const observer = new PerformanceObserver(() => {});
        observer.observe({ type: "layout-shift", buffered: true });
        // Entries that are buffered come with the next frames.
        requestAnimationFrame(() => requestAnimationFrame(() => resolve(observer.takeRecords().reduce((sum, { value }) => sum + value, 0))));
      }));
      // What the Web Vitals call good.
      assert.ok(shifts < 0.1, `${view} moves by ${shifts}`);
    }
    say("c-phone", "p-1", "hello");
    await page.goto(`${DASHBOARD}#/conversation/c-phone`);
    await page.getByRole("option").first().click();
    await page.getByLabel("Payload").waitFor();
    assert.ok((await sideways()) <= 0, "a conversation");
    await page.context().close();
  },

  async "five hundred messages are drawn, and more grow below them"() {
    const page = await open();
    for (let n = 0; n < 500; n += 1) {
      nats.publish("nachos.analytics.step", JSON.stringify({ id: `l-${n}`, type: "step", source: `agent-${n % 5}`, payload: { n }, trace: { conversationId: "c-long" } }));
    }
    await nats.flush();
    await page.goto(`${DASHBOARD}#token=${TOKEN}`);
    await page.getByText("Connected").waitFor();
    await page.goto(`${DASHBOARD}#/conversation/c-long`);
    const rows = page.getByRole("option");
    await rows.nth(499).waitFor({ state: "attached" });
    await page.getByText("Following live").waitFor();
    await rows.first().focus();
    await page.keyboard.press("End");
    for (let n = 500; n < 550; n += 1) {
      nats.publish("nachos.analytics.step", JSON.stringify({ id: `l-${n}`, type: "step", source: `agent-${n % 5}`, payload: { n }, trace: { conversationId: "c-long" } }));
    }
    await rows.nth(549).waitFor({ state: "attached" });
    assert.equal(await rows.count(), 550);
    const below = () => page.evaluate(() => { const box = document.querySelector(".sequence"); return box.scrollHeight - box.scrollTop - box.clientHeight; });
    assert.ok((await below()) < 40, "who reads at the end goes on reading there");
    assert.equal(await rows.nth(499).getAttribute("aria-selected"), "true", "what was chosen stays chosen");
    await page.keyboard.press("Home");
    const top = await page.evaluate(() => document.querySelector(".sequence").scrollTop);
    nats.publish("nachos.analytics.step", JSON.stringify({ id: "l-550", type: "step", source: "agent-0", payload: {}, trace: { conversationId: "c-long" } }));
    await rows.nth(550).waitFor({ state: "attached" });
    assert.equal(await page.evaluate(() => document.querySelector(".sequence").scrollTop), top, "who has scrolled up is not moved");
    await page.context().close();
  },

  async "many connections and subjects are searched, sorted and turned over, and none of their names is markup"() {
    const page = await open();
    const crowd = [];
    for (let n = 0; n < 230; n += 1) crowd.push(await connect({ servers: NATS, name: n === 7 ? EVIL : `crowd-${n}`, reconnect: false }));
    crowd[9].subscribe("nachos.crowd.a");
    crowd[9].subscribe("nachos.crowd.b");
    crowd[9].publish("nachos.analytics.<svg/onload=window.hacked=1>", "{}");
    crowd[9].publish(`nachos.analytics.${"x".repeat(200)}`, "{}");
    await crowd[9].flush();
    await page.goto(`${DASHBOARD}#token=${TOKEN}`);
    await page.getByText("Connected").waitFor();
    await page.goto(`${DASHBOARD}#/connections`);
    await page.getByText(/^1 to 200 of \d+\.$/).waitFor();
    await page.getByRole("rowheader", { name: EVIL }).waitFor();
    await page.getByRole("button", { name: "Next" }).click();
    await page.getByText(/^201 to \d+ of \d+\.$/).waitFor();
    await page.getByRole("rowheader", { name: "crowd-229" }).waitFor();
    await page.getByLabel("Name, user or address has").fill("CROWD-2");
    await page.keyboard.press("Enter");
    await page.getByText("41 in all.").waitFor();
    await page.getByLabel("Name, user or address has").fill("crowd-");
    await page.getByLabel("Order").selectOption("most subscriptions");
    await page.waitForFunction(() => document.querySelector("tbody th")?.textContent === "crowd-9");
    await accessible(page, "many connections");
    await page.goto(`${DASHBOARD}#/subjects`);
    await page.getByRole("rowheader", { name: "nachos.analytics.<svg/onload=window.hacked=1>" }).waitFor();
    await page.getByLabel("Subject, pattern or name has").fill("nachos.crowd");
    await page.getByText("0 subjects, 2 lines of subscriptions.").waitFor();
    await page.getByLabel("Subject, pattern or name has").fill("");
    // What is marked to be copied is still marked after the next answers.
    await page.evaluate(() => getSelection().selectAllChildren(document.querySelector("tbody th")));
    const marked = await page.evaluate(() => String(getSelection()));
    assert.match(marked, /^[^\s]+$/);
    for (let n = 0; n < 2; n += 1) await page.waitForResponse(/\/api\/v1\/subjects/);
    const still = await page.evaluate(() => [String(getSelection()), document.querySelector("tbody th").textContent]);
    assert.ok(still[0] === marked || still[1] !== marked, `${marked} is ${still}`);
    assert.equal(await page.locator("main img, main script, tbody svg").count(), 0);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    await Promise.all(crowd.map((client) => client.close()));
    await page.context().close();
  },

  async "what is no text is shown as bytes, and no link leads anywhere but to the page"() {
    const page = await open();
    const letters = { stream: "dead", total: 1, end: true, next: null, letters: [{ offset: "7", time: "2026-11-22T10:15:30Z", reason: "rejected", attempts: 2, stream: "tasks", consumer: "workers", originalSubject: "nachos.tool.x.task", originalOffset: "3" }] };
    const letter = { ...letters.letters[0], message: { headers: [["X", 'javascript:window.hacked=1']], payloadBase64: Buffer.from([0, 255, 65, 10, ...Array(20).fill(7)]).toString("base64") } };
    await page.route(/\/api\/v1\/dead-letters(\?|$)/, (route) => route.fulfill({ json: letters }));
    await page.route("**/api/v1/dead-letters/7", (route) => route.fulfill({ json: letter }));
    const evil = 'javascript:window.hacked=1//"><img src=x>';
    nats.publish("nachos.analytics.step", JSON.stringify({ id: "j-1", type: "step", source: evil, payload: {}, trace: { conversationId: evil } }));
    await nats.flush();
    await page.goto(`${DASHBOARD}#token=${TOKEN}`);
    await page.getByText("Connected").waitFor();
    await page.goto(`${DASHBOARD}#/dead-letters`);
    await page.getByRole("button", { name: "Show dead letter 7" }).click();
    const shown = await page.getByLabel("Payload").textContent();
    assert.equal(shown, ["(24 bytes that are no text)", "000000  00 ff 41 0a 07 07 07 07  ..A.....", "000008  07 07 07 07 07 07 07 07  ........", "000010  07 07 07 07 07 07 07 07  ........"].join("\n"));
    await page.goto(`${DASHBOARD}#/conversations`);
    await page.getByRole("link", { name: "javascript:window.hacked" }).click();
    await page.getByRole("option").first().click();
    await page.getByLabel("Payload").waitFor();
    const links = await page.evaluate(() => [...document.querySelectorAll("a[href]")].map((link) => link.href));
    assert.deepEqual(links.filter((link) => !link.startsWith(`${ORIGIN}/dashboard#`)), []);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    await page.context().close();
  },

  async "a dead letter is looked at and sent back by the keyboard, and the rest by their filter"() {
    const page = await open();
    await page.goto(`${DASHBOARD}#token=${TOKEN}`);
    await page.goto(`${DASHBOARD}#/dead-letters`);
    const letters = page.getByRole("button", { name: /^Show dead letter/ });
    await letters.first().waitFor();
    assert.equal(await letters.count(), 3);
    await letters.first().focus();
    await page.keyboard.press("Enter");
    assert.ok((await page.getByLabel("Payload").textContent()).includes(EVIL));
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    await accessible(page, "a dead letter");
    await page.getByRole("button", { name: "Redrive…" }).focus();
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    assert.equal(await letters.count(), 3, "Escape is no");
    await page.getByRole("button", { name: "Redrive…" }).press("Enter");
    await accessible(page, "the question");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.getByRole("status").filter({ hasText: "1 sent back to work." }).waitFor();
    await page.waitForFunction(() => document.querySelectorAll("[aria-label^='Show dead letter']").length === 2);
    await page.getByLabel("Stream").fill("tasks");
    await page.getByRole("button", { name: "Filter" }).click();
    await page.getByRole("button", { name: "Redrive all that match…" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Redrive" }).click();
    await page.getByRole("status").filter({ hasText: "2 sent back to work." }).waitFor();
    await page.getByText("No dead letters, which is as it should be.").waitFor();
    await page.context().close();
  },

  async "a server that was started anew is found again, and that is said"() {
    const page = await open();
    await page.goto(`${DASHBOARD}#token=${TOKEN}`);
    await page.getByText("Connected · in_memory ok").waitFor();
    console.log("restart");
    await page.getByText("the server was started anew").waitFor();
    assert.equal(await page.locator(".problem").count(), 0);
    await page.context().close();
  },
};

try {
  nats.subscribe("nachos.watched");
  await nats.flush();
  for (const [name, test] of Object.entries(tests)) {
    const started = performance.now();
    await test().catch((error) => {
      error.message = `${name}: ${error.message}`;
      throw error;
    });
    console.error(`${name}: ${Math.round(performance.now() - started)} ms`);
  }
  const elsewhere = asked.filter((url) => new URL(url).origin !== ORIGIN);
  assert.deepEqual(elsewhere, [], "no request leaves the server");
  assert.deepEqual(complaints, [], "no error, and nothing that the policy forbids");
  console.log("done");
} finally {
  await browser.close();
  await nats.close();
}
