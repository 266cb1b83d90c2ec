// Node's own HTTP server: prints the Host that its handler saw of each request, one JSON value a line.
const http = require('node:http');
const [address, port] = process.argv.slice(2);
http.createServer({ maxHeaderSize: 1 << 20, requireHostHeader: false }, (request, response) => {
  console.log(JSON.stringify(request.headers.host ?? ''));
  response.end('ok\n');
}).listen(Number(port), address);
