// java.net.http's WebSocket through a proxy, or "direct": java WebSocketClient.java PROXY URI.

import java.net.InetSocketAddress;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.TimeUnit;

public class WebSocketClient {
    public static void main(String[] arguments) throws Exception {
        HttpClient.Builder client = HttpClient.newBuilder();
        if (!arguments[0].equals("direct")) {
            String[] proxy = arguments[0].split(":");
            client.proxy(ProxySelector.of(new InetSocketAddress(proxy[0], Integer.parseInt(proxy[1]))));
        }
        CompletableFuture<String> answer = new CompletableFuture<>();
        WebSocket.Listener listener = new WebSocket.Listener() {
            private final StringBuilder text = new StringBuilder();

            @Override
            public CompletionStage<?> onText(WebSocket socket, CharSequence part, boolean last) {
                text.append(part);
                if (last) {
                    answer.complete(text.toString());
                }
                socket.request(1);
                return null;
            }

            @Override
            public void onError(WebSocket socket, Throwable error) {
                answer.completeExceptionally(error);
            }
        };
        WebSocket socket = client.build().newWebSocketBuilder().buildAsync(URI.create(arguments[1]), listener).get(60, TimeUnit.SECONDS);
        socket.sendText("hello", true);
        System.out.println(answer.get(60, TimeUnit.SECONDS) + " came back");
        System.exit(0);
    }
}
