FROM busybox
COPY hello /hello
ONBUILD RUN echo never > /never
