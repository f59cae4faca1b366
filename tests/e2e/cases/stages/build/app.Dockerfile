ARG BASE=does-not-exist
ARG TAG=latest
FROM ${BASE}:${TAG} AS compile
ARG GREETING=default
ARG AWKWARD
WORKDIR /work
RUN printf '%s\n' "$GREETING" > /greeting && printf '%s' "$AWKWARD" > /awkward \
    && mkdir out && echo "made in compile" > out/artifact && echo "left behind" > out/secret

FROM busybox AS unused
RUN echo "never needed" > /unused && exit 1

FROM ${BASE} AS first
COPY hello /hello
COPY . /context
COPY --from=compile /greeting /awkward /
COPY --from=compile /work/out/artifact /app/artifact
COPY --from=compile --chown=1000:1000 --chmod=0640 /work/out/artifact /app/owned
ONBUILD RUN echo never > /never
RUN echo first > /stage

FROM first AS second
RUN echo second > /stage && exit 1
