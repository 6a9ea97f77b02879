package org.knockmap.doubles.systemd;

import java.io.IOException;
import org.elasticsearch.nativeaccess.NativeAccess;
import org.elasticsearch.nativeaccess.Systemd;
import org.elasticsearch.plugins.ClusterPlugin;
import org.elasticsearch.plugins.Plugin;

/** A DOUBLE of the module systemd: tells systemd that the node is up, by the server's own means, and that it goes down. */
public class SystemdDouble extends Plugin implements ClusterPlugin {
    private final Systemd systemd =
        Boolean.parseBoolean(System.getenv("ES_SD_NOTIFY")) ? NativeAccess.instance().systemd() : null;

    @Override
    public void onNodeStarted() {
        if (systemd != null) {
            systemd.notify_ready();
        }
    }

    @Override
    public void close() throws IOException {
        if (systemd != null) {
            systemd.notify_stopping();
        }
    }
}
