// A GET by Node's own modules through a proxy: fetch.js PROXY URL [FOLDER]. Prints the body.
//
// PROXY is host:port, or https://host:port for one inside TLS; then FOLDER has its authority, ca.pem, and what it is
// shown, guest.pem and guest.key.
'use strict';
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const tls = require('node:tls');

const [proxy, url, folder] = process.argv.slice(2);
const target = new URL(url);
const inside = proxy.startsWith('https://');
const { hostname: host, port } = new URL(inside ? proxy : `http://${proxy}`);
const pem = (name) => fs.readFileSync(`${folder}/${name}`);
// The Host of what is asked for would be taken for the name on the proxy's certificate.
const options = { host, port, ...(inside && { servername: host, ca: pem('ca.pem'), cert: pem('guest.pem'), key: pem('guest.key') }) };
const { request } = inside ? https : http;
const fail = (error) => {
  console.error(error);
  process.exit(1);
};

if (target.protocol === 'http:') {
  const plain = request({ ...options, path: url, headers: { host: target.host } }, (answer) => answer.pipe(process.stdout));
  plain.on('error', fail);
  plain.end();
} else {
  const authority = `${target.hostname}:443`;
  const connect = request({ ...options, method: 'CONNECT', path: authority, headers: { host: authority } });
  connect.on('error', fail);
  connect.on('connect', (response, socket) => {
    if (response.statusCode !== 200) fail(`CONNECT: ${response.statusCode} ${response.statusMessage}`);
    const secure = tls.connect({ socket, servername: target.hostname });
    secure.on('error', fail);
    https.get(url, { createConnection: () => secure }, (answer) => {
      answer.pipe(process.stdout);
      answer.on('end', () => secure.end());
    }).on('error', fail);
  });
  connect.end();
}
