#!/bin/sh
# Gives Kafka's tools the names people type: mounted into the kafka container as
# /usr/local/bin/kafka-topics and so on, it runs /opt/kafka/bin/kafka-topics.sh.
exec "/opt/kafka/bin/$(basename "$0").sh" "$@"
