#!/bin/sh
# tour.sh 127.0.0.1:50051 book.txt MODEL     (needs grpcurl; the server tells its contract itself)
set -eu
address=$1 corpus=$2 model=$3
grpcurl=${GRPCURL:-grpcurl}
service=charlstm.v1
call() { "$grpcurl" -plaintext "$@"; }

# Trains: one JSON message after the other on standard input; bytes are base64.
{
    echo '{"spec": {"model": "'"$model"'", "hiddenSize": 16, "numLayers": 1, "batchSize": 4,
           "sequenceLength": 16, "epochs": 2}}'
    echo '{"corpusChunk": "'"$(base64 <"$corpus" | tr -d '\n')"'"}'
} | call -d @ "$address" $service.TrainingService/Train | grep -E '"(trainLoss|state)"'

# Generates in a session, and goes on in it.
prime=$(head -n 1 "$corpus" | cut -c 1-6)
call -d '{"model": "'"$model"'", "prime": "'"$prime"'", "maxChars": 40, "sessionId": "grpcurl"}' \
    "$address" $service.GenerationService/Generate | grep '"reason"'
call -d '{"sessionId": "grpcurl", "maxChars": 10}' \
    "$address" $service.GenerationService/Generate | grep '"chars"'

# An error and its details, which grpcurl decodes.
call -d '{"model": "nobody", "prime": "a"}' \
    "$address" $service.GenerationService/Generate 2>&1 | grep -E 'Code|reason'

# Leaves midway: a deadline of a second ends an endless text.
call -max-time 1 -d '{"model": "'"$model"'", "prime": "'"$prime"'", "maxChars": 1000000}' \
    "$address" $service.GenerationService/Generate 2>&1 | grep 'Code'
