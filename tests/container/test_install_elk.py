"""Elasticsearch and Logstash on a real box: from the packages to documents, closed and held."""
