/** Named as the real one: only modules that the server knows by name may speak with systemd. */
module org.elasticsearch.systemd {
    requires org.elasticsearch.server;
    requires org.elasticsearch.nativeaccess;

    exports org.knockmap.doubles.systemd to org.elasticsearch.server;
}
