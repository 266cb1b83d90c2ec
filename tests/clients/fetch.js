// An https GET by Node through CONNECT: fetch.js PROXY URL. Prints the body.
'use strict';
const http = require('node:http');
const https = require('node:https');
const tls = require('node:tls');

const [proxy, url] = process.argv.slice(2);
const target = new URL(url);
const [host, port] = proxy.split(':');
const fail = (error) => {
  console.error(error);
  process.exit(1);
};

const connect = http.request({ host, port, method: 'CONNECT', path: `${target.hostname}:443`, headers: { host: `${target.hostname}:443` } });
connect.on('error', fail);
connect.on('connect', (response, socket) => {
  if (response.statusCode !== 200) fail(`CONNECT: ${response.statusCode}`);
  const secure = tls.connect({ socket, servername: target.hostname });
  secure.on('error', fail);
  https.get(url, { createConnection: () => secure }, (answer) => {
    answer.pipe(process.stdout);
    answer.on('end', () => secure.end());
  }).on('error', fail);
});
connect.end();
