// GETs by an agent from npm: agent.js FOLDER EXPRESSION URL... Prints a line of JSON for each.
//
// EXPRESSION is what docs/tls.md has for the agent; in FOLDER are ca.pem, guest.pem and guest.key. Of a wss:// URL the
// first message that comes back is the answer.
'use strict';
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const { HttpProxyAgent } = require('http-proxy-agent');
const { HttpsProxyAgent } = require('https-proxy-agent');
const { ProxyAgent, WebSocket, fetch } = require('undici');

const [folder, expression, ...urls] = process.argv.slice(2);
const [ca, cert, key] = ['ca.pem', 'guest.pem', 'guest.key'].map((name) => fs.readFileSync(`${folder}/${name}`));
// The sister of HttpsProxyAgent for http:// is a package of its own.
const agent = (url) => eval(url.startsWith('http:') ? expression.replace('HttpsProxyAgent', 'HttpProxyAgent') : expression);

const byUndici = async (url, dispatcher) => {
  const response = await fetch(url, { dispatcher });
  return { status: response.status, body: await response.text() };
};
const byCore = (url, agent) => new Promise((resolve, reject) => {
  (url.startsWith('http:') ? http : https).get(url, { agent }, (response) => {
    let body = '';
    response.on('data', (piece) => { body += piece; });
    response.on('end', () => resolve({ status: response.statusCode, body }));
  }).on('error', reject);
});
const byWebSocket = (url, dispatcher) => new Promise((resolve, reject) => {
  const socket = new WebSocket(url, { dispatcher });
  const sent = 'message '.repeat(5000);
  socket.onopen = () => socket.send(sent);
  socket.onmessage = ({ data }) => resolve({ status: 101, body: data === sent ? 'the same came back' : 'something else came back' });
  socket.onerror = () => reject(new Error('no WebSocket'));
});

const why = (error) => (error ? `${error.message}; ${why(error.cause)}` : '');
const run = async () => {
  for (const url of urls) {
    const by = url.startsWith('wss:') ? byWebSocket : expression.includes('HttpsProxyAgent') ? byCore : byUndici;
    const said = await by(url, agent(url)).catch((error) => ({ error: why(error) }));
    console.log(JSON.stringify({ url, ...said }));
  }
  process.exit(0);
};
run();
