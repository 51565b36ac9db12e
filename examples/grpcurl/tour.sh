#!/bin/sh
# Usage: tour.sh 127.0.0.1:50051 book.txt MODEL
# Requires grpcurl; it reads the contract from the server by reflection.
set -eu
if [ $# -ne 3 ]; then
    echo "usage: $0 ADDRESS CORPUS MODEL" >&2
    exit 2
fi
address=$1 corpus=$2 model=$3
grpcurl=${GRPCURL:-grpcurl}
service=charlstm.v1
# TLS if CHARLSTM_TLS_CA is set, the file of the certificate authority; with the
# access token in CHARLSTM_TOKEN_FILE.
call() {
    if [ -n "${CHARLSTM_TOKEN_FILE:-}" ]; then
        set -- -H "authorization: Bearer $(cat "$CHARLSTM_TOKEN_FILE")" "$@"
    fi
    if [ -n "${CHARLSTM_TLS_CA:-}" ]; then
        "$grpcurl" -cacert "$CHARLSTM_TLS_CA" "$@"
    else
        "$grpcurl" -plaintext "$@"
    fi
}

# Train: one JSON message per request on standard input; bytes are base64.
{
    echo '{"spec": {"model": "'"$model"'", "hiddenSize": 16, "numLayers": 1, "batchSize": 4,
           "sequenceLength": 16, "epochs": 2}}'
    echo '{"corpusChunk": "'"$(base64 <"$corpus" | tr -d '\n')"'"}'
} | call -d @ "$address" $service.TrainingService/Train | grep -E '"(trainLoss|state)"'

# Generate in a session, then continue the session.
prime=$(head -n 1 "$corpus" | cut -c 1-6)
call -d '{"model": "'"$model"'", "prime": "'"$prime"'", "maxChars": 40, "sessionId": "grpcurl"}' \
    "$address" $service.GenerationService/Generate | grep '"reason"'
call -d '{"sessionId": "grpcurl", "maxChars": 10}' \
    "$address" $service.GenerationService/Generate | grep '"chars"'

# An error, with its details decoded by grpcurl.
call -d '{"model": "unknown", "prime": "a"}' \
    "$address" $service.GenerationService/Generate 2>&1 | grep -E 'Code|reason'

# Stop early: a deadline of one second ends a long generation.
call -max-time 1 -d '{"model": "'"$model"'", "prime": "'"$prime"'", "maxChars": 1000000}' \
    "$address" $service.GenerationService/Generate 2>&1 | grep 'Code'
