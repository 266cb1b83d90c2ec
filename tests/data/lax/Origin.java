// Java's own HTTP server: prints the Host that its handler saw of each request, one JSON value a line.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.List;
import java.util.concurrent.Executors;

public class Origin {
    public static void main(String[] arguments) throws Exception {
        var address = new InetSocketAddress(arguments[0], Integer.parseInt(arguments[1]));
        var server = HttpServer.create(address, 0);
        server.createContext("/", exchange -> {
            var hosts = String.join(", ", exchange.getRequestHeaders().getOrDefault("Host", List.of()));
            System.out.println('"' + hosts.replaceAll("[^ -~]|[\"\\\\]", "?") + '"');
            exchange.sendResponseHeaders(200, 3);
            exchange.getResponseBody().write("ok\n".getBytes());
            exchange.close();
        });
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
    }
}
